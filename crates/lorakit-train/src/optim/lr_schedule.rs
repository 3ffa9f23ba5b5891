//! Learning-rate schedules with a linear warm-up, as in transformers.

use serde::{Deserialize, Serialize};

/// How the learning rate changes after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedulerType {
    /// Linear decay to zero.
    Linear,
    /// Half a cosine down to zero.
    Cosine,
    /// No decay, but a warm-up as in the others: what transformers calls `constant_with_warmup`. Its `constant` is this one
    /// with `warmup_ratio=0`.
    #[serde(alias = "constant_with_warmup")]
    Constant,
}

/// A learning-rate schedule over a fixed number of steps.
#[derive(Clone, Copy, Debug)]
pub struct LrSchedule {
    kind: LrSchedulerType,
    warmup: usize,
    steps: usize,
}

impl LrSchedule {
    /// A warm-up over `ceil(warmup_ratio * steps)` steps, then `kind`. At least the last step is not part of the warm-up,
    /// whose first step has rate zero: a single step would change nothing.
    pub fn new(kind: LrSchedulerType, warmup_ratio: f64, steps: usize) -> Self {
        Self { kind, warmup: requested_warmup(warmup_ratio, steps).min(steps.saturating_sub(1)), steps }
    }

    /// The steps of warm-up where the ratio alone would make all steps warm-up.
    pub fn shortened_warmup(warmup_ratio: f64, steps: usize) -> Option<usize> {
        let most = steps.saturating_sub(1);
        (requested_warmup(warmup_ratio, steps) > most).then_some(most)
    }

    /// The same after a warm-up over `warmup` steps. If there are no more steps than these, the peak is never reached.
    pub fn with_warmup(self, warmup: usize) -> Self {
        Self { warmup, ..self }
    }

    /// Total number of steps.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The factor on the peak learning rate at `step`, counted from zero.
    ///
    /// With warm-up `w` and total `T`: `t / w` during the warm-up, then `(T - t) / (T - w)` (linear) or
    /// `(1 + cos(π (t - w) / (T - w))) / 2` (cosine). The first warm-up step has rate zero, as in transformers.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let decay_steps = self.steps.saturating_sub(self.warmup).max(1) as f64;
        let progress = (step - self.warmup) as f64 / decay_steps;
        match self.kind {
            LrSchedulerType::Linear => (1.0 - progress).max(0.0),
            LrSchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress.min(1.0)).cos()),
            LrSchedulerType::Constant => 1.0,
        }
    }
}

/// The steps of warm-up that the ratio requests.
fn requested_warmup(warmup_ratio: f64, steps: usize) -> usize {
    (warmup_ratio * steps as f64).ceil() as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_step_is_no_warm_up() {
        let factors = |ratio, steps| {
            let schedule = LrSchedule::new(LrSchedulerType::Linear, ratio, steps);
            (0..steps).map(|step| schedule.factor(step)).collect::<Vec<_>>()
        };
        assert_eq!(factors(0.06, 1), [1.0]);
        assert_eq!(factors(0.06, 2), [0.0, 1.0]);
        assert_eq!(factors(1.0, 3), [0.0, 0.5, 1.0]);
        let shortened = [(0.06, 1), (1.0, 3), (0.06, 2), (0.0, 1), (0.5, 0)];
        let shortened = shortened.map(|(ratio, steps)| LrSchedule::shortened_warmup(ratio, steps));
        assert_eq!(shortened, [Some(0), Some(2), None, None, None]);
    }

    #[test]
    fn schedules_warm_up_and_decay_as_in_transformers() {
        let factors = |kind| {
            let schedule = LrSchedule::new(kind, 0.25, 8);
            [0, 1, 2, 5, 8].map(|step| (schedule.factor(step) * 1e6).round() / 1e6)
        };
        assert_eq!(factors(LrSchedulerType::Linear), [0.0, 0.5, 1.0, 0.5, 0.0]);
        assert_eq!(factors(LrSchedulerType::Cosine), [0.0, 0.5, 1.0, 0.5, 0.0]);
        assert_eq!(factors(LrSchedulerType::Constant), [0.0, 0.5, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn a_warm_up_may_be_longer_than_the_training() {
        let schedule = LrSchedule::new(LrSchedulerType::Linear, 0.5, 8).with_warmup(16);
        assert_eq!([0, 4, 8].map(|step| schedule.factor(step)), [0.0, 0.25, 0.5]);
        assert_eq!([2, 4, 6].map(|step| schedule.with_warmup(4).factor(step)), [0.5, 1.0, 0.5]);
    }
}
