//! What a paired difference says about a claim.

use crate::statistics::paired_difference::PairedDifference;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The fewest tasks, or families of tasks where those are drawn, that can decide a claim. With five tasks even five
/// differences of one sign are no surprise at the level of 5 %: a test of signs gives 2/2^5 = 6 %.
pub const DECISIVE_TASKS: usize = 6;

/// Whether a claim "this router is better than that" held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The interval of the gain lies above zero.
    Held,
    /// The interval lies below zero: the opposite held.
    NotHeld,
    /// The interval contains zero, or there are fewer than [`DECISIVE_TASKS`] tasks or families.
    Undecided,
    /// The tasks' own experts do not beat the base and chance by two standard errors, so that choosing them could not
    /// show.
    NotTestable,
}

impl Verdict {
    /// Of the gain of the router that a claim calls better, which is positive where it is better. `testable` says whether
    /// the tasks' own experts know their tasks: see [`Verdict::NotTestable`].
    ///
    /// ```
    /// use lorakit_eval::{PairedDifference, Verdict};
    ///
    /// let gains: Vec<Vec<f64>> = (0..8).map(|task| vec![0.1 + 0.01 * f64::from(task)]).collect();
    /// let gain = PairedDifference::of(&gains).unwrap();
    /// assert_eq!(Verdict::of(&gain, true).to_string(), "held");
    /// assert_eq!(Verdict::of(&gain, false).to_string(), "not testable here");
    /// ```
    pub fn of(gain: &PairedDifference, testable: bool) -> Self {
        let [low, high] = gain.interval;
        match testable {
            false => Self::NotTestable,
            true if gain.drawn() < DECISIVE_TASKS => Self::Undecided,
            true if low > 0.0 => Self::Held,
            true if high < 0.0 => Self::NotHeld,
            true => Self::Undecided,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Held => "held",
            Self::NotHeld => "not held",
            Self::Undecided => "undecided",
            Self::NotTestable => "not testable here",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gain(tasks: usize, interval: [f64; 2]) -> PairedDifference {
        PairedDifference {
            tasks,
            families: None,
            seeds: 1,
            mean: f64::midpoint(interval[0], interval[1]),
            stderr: 0.1,
            interval,
        }
    }

    #[test]
    fn a_verdict_needs_the_whole_interval_on_one_side() {
        assert_eq!(Verdict::of(&gain(10, [0.1, 0.3]), true), Verdict::Held);
        assert_eq!(Verdict::of(&gain(10, [-0.3, -0.1]), true), Verdict::NotHeld);
        assert_eq!(Verdict::of(&gain(10, [-0.1, 0.3]), true), Verdict::Undecided);
        assert_eq!(Verdict::of(&gain(10, [0.0, 0.3]), true), Verdict::Undecided);
    }

    #[test]
    fn few_tasks_decide_nothing() {
        assert_eq!(Verdict::of(&gain(DECISIVE_TASKS - 1, [0.1, 0.3]), true), Verdict::Undecided);
        assert_eq!(Verdict::of(&gain(DECISIVE_TASKS, [0.1, 0.3]), true), Verdict::Held);
        let families = PairedDifference { families: Some(DECISIVE_TASKS - 1), ..gain(24, [0.1, 0.3]) };
        assert_eq!(Verdict::of(&families, true), Verdict::Undecided);
    }

    #[test]
    fn experts_that_do_not_know_their_tasks_test_no_router() {
        assert_eq!(Verdict::of(&gain(10, [0.1, 0.3]), false), Verdict::NotTestable);
    }
}
