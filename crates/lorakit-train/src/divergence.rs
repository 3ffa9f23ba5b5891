//! Detects failed training: a NaN loss or gradient, a loss that jumps or ends far too high, or a gradient that vanished.

/// Steps that a jump is compared with, besides the first ones.
const RECENT: usize = 20;

/// The first steps, whose losses are those that training started from.
const FIRST: usize = 3;

/// Steps with a zero gradient after which training is considered stuck.
const STUCK: usize = 3;

/// A loss below which the task is learned; a zero gradient is fine there.
const LEARNED: f64 = 1e-2;

/// Rows of a batch that a message lists.
const LISTED: usize = 8;

/// The limits that training is monitored by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DivergenceMonitor {
    /// Allowed ratio of the loss to what it was; 0 disables the limit.
    pub max_loss_jump: f64,
    /// The base's vocabulary size.
    pub vocabulary: usize,
}

/// Why an expert's training is stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Divergence {
    /// The loss or the gradient's norm is not finite.
    NonFinite { loss: f64, norm: f64 },
    /// The loss, averaged over two steps, is far above its recent or its first values.
    Jump { mean: f64, limit: f64 },
    /// The gradient is zero.
    Stuck { loss: f64 },
}

impl DivergenceMonitor {
    /// Checks a step: `losses` and `norms` are those of the steps before it.
    ///
    /// A loss has jumped if the mean of it and the one before exceeds the [limit](Self::limit) of those before. The mean
    /// of two, since a single odd row affects one step and diverged training stays diverged.
    pub(crate) fn check(&self, loss: f64, norm: f64, losses: &[f32], norms: &[f32]) -> Option<Divergence> {
        if !loss.is_finite() || !norm.is_finite() {
            return Some(Divergence::NonFinite { loss, norm });
        }
        let stuck = norm == 0.0 && norms.iter().rev().take_while(|norm| **norm == 0.0).count() + 1 >= STUCK;
        if stuck && loss > LEARNED {
            return Some(Divergence::Stuck { loss });
        }
        let (last, earlier) = losses.split_last()?;
        let (mean, limit) = (0.5 * (loss + f64::from(*last)), self.limit(earlier)?);
        (mean > limit).then_some(Divergence::Jump { mean, limit })
    }

    /// Why an expert has failed at its end, if it has: its last validation loss, or without one the mean of its last two
    /// training losses, exceeds the limit of its first loss, or is NaN.
    pub(crate) fn check_end(&self, validation: Option<f32>, losses: &[f32]) -> Option<String> {
        let (first, after) = losses.split_first()?;
        let latest = &after[after.len().saturating_sub(2)..];
        let (what, end) = match validation {
            Some(loss) => ("validation", f64::from(loss)),
            // A single step has nothing to compare with.
            None if latest.is_empty() => return None,
            None => ("training", latest.iter().map(|loss| f64::from(*loss)).sum::<f64>() / latest.len() as f64),
        };
        let limit = self.limit(std::slice::from_ref(first))?;
        (end.is_nan() || end > limit).then(|| {
            format!(
                "after its last step, {}, its {what} loss was {end:.3}; it started at {first:.3}, and the limit was \
                 {limit:.3}; try a lower learning_rate, or raise max_loss_jump",
                losses.len()
            )
        })
    }

    /// The loss above which training has diverged: `max_loss_jump` times the highest recent loss or the highest of the first
    /// losses, whichever is lower, so that a steadily rising loss does not raise its own limit; and never below
    /// `ln(vocabulary)`, the loss of guessing, since a learned task has losses near zero, of which anything is a
    /// multiple. None if the check is disabled or there are no losses to compare with.
    fn limit(&self, losses: &[f32]) -> Option<f64> {
        let highest = |losses: &[f32]| losses.iter().copied().reduce(f32::max).map(f64::from);
        let recent = highest(&losses[losses.len().saturating_sub(RECENT)..])?;
        let first = highest(&losses[..losses.len().min(FIRST)])?;
        (self.max_loss_jump > 0.0).then(|| (self.max_loss_jump * recent.min(first)).max((self.vocabulary as f64).ln()))
    }
}

impl Divergence {
    /// Describes the failure at step `step`, whose `rows` are training rows by index, each with its share in the loss.
    pub(crate) fn describe(&self, step: usize, rows: &[(usize, f64)]) -> String {
        let (what, remedy) = match self {
            Self::NonFinite { loss, norm } => (
                format!("its loss was {loss} and its gradient norm {norm}"),
                "check the row, or try a lower learning_rate",
            ),
            Self::Jump { mean, limit } => (
                format!("its loss jumped to {mean:.3} (mean of the last two steps; limit {limit:.3})"),
                "check the row, try a lower learning_rate, or raise max_loss_jump",
            ),
            // No row is the cause.
            Self::Stuck { loss } => {
                return format!(
                    "at step {step} its gradient was exactly zero, as at the {} before it, at a loss of {loss:.3}: \
                     it cannot learn any further; try a lower learning_rate",
                    STUCK - 1
                );
            }
        };
        let worst = worst_row(rows).map_or(String::new(), |row| format!(", row {} the worst", row + 1));
        format!("at step {step} {what}, on training rows {}{worst}; {remedy}", list_rows(rows))
    }
}

/// The row with the highest loss; NaN counts as the highest.
fn worst_row(rows: &[(usize, f64)]) -> Option<usize> {
    let key = |loss: f64| if loss.is_nan() { f64::INFINITY } else { loss };
    rows.iter().max_by(|(a, x), (b, y)| key(*x).total_cmp(&key(*y)).then(b.cmp(a))).map(|(row, _)| *row)
}

/// The row numbers, from one, in file order.
fn list_rows(rows: &[(usize, f64)]) -> String {
    let mut numbers: Vec<usize> = rows.iter().map(|(row, _)| row + 1).collect();
    numbers.sort_unstable();
    let more = numbers.len().saturating_sub(LISTED);
    let first: Vec<String> = numbers.iter().take(LISTED).map(usize::to_string).collect();
    if more > 0 { format!("{} and {more} more", first.join(", ")) } else { first.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONITOR: DivergenceMonitor = DivergenceMonitor { max_loss_jump: 2.0, vocabulary: 1000 };

    fn of(losses: &[f32], loss: f64) -> Option<Divergence> {
        MONITOR.check(loss, 1.0, losses, &vec![1.0; losses.len()])
    }

    #[test]
    fn a_jump_lasts_two_steps_and_exceeds_recent_losses_and_guessing() {
        assert_eq!(of(&[2.4, 3.0, 2.6, 8.0], 6.3), Some(Divergence::Jump { mean: 7.15, limit: 1000f64.ln() }));
        assert_eq!(of(&[4.0, 4.0, 4.0, 8.0], 7.9), None, "not twice as high");
        assert!(matches!(of(&[4.0, 4.0, 4.0, 8.0], 8.1), Some(Divergence::Jump { limit: 8.0, .. })));
        assert_eq!(of(&[0.01; 30], 10.0), None, "one odd row");
        let fallen: Vec<f32> = std::iter::once(50.0).chain([4.0; RECENT]).chain([9.0]).collect();
        assert!(of(&fallen, 9.0).is_some(), "only recent losses count");
        let any = DivergenceMonitor { max_loss_jump: 0.0, ..MONITOR };
        assert_eq!(any.check(90.0, 1.0, &fallen, &[]), None, "switched off");
        assert_eq!(any.check_end(Some(90.0), &fallen), None, "switched off");
        assert!(matches!(MONITOR.check(1.0, f64::INFINITY, &[], &[]), Some(Divergence::NonFinite { .. })));
    }

    #[test]
    fn the_first_steps_are_checked_and_a_rising_loss_does_not_raise_its_limit() {
        assert_eq!(of(&[], 90.0), None, "the loss of the base itself");
        assert_eq!(of(&[4.0], 90.0), None, "one step");
        assert!(of(&[4.0, 60.0], 55.0).is_some());
        let rising: Vec<f32> = (0..40).map(|update| 4.0 * 1.1f32.powi(update)).collect();
        let stopped = (2..40).find(|&at| of(&rising[..at], rising[at].into()).is_some());
        assert!(stopped.is_some_and(|at| rising[at] < 12.0), "{stopped:?}");
    }

    #[test]
    fn a_zero_gradient_stops_an_expert_that_has_not_learned() {
        let of = |loss, norms: &[f32]| MONITOR.check(loss, 0.0, &vec![7.0; norms.len()], norms);
        assert_eq!(of(6.9, &[1.0, 0.0, 0.0]), Some(Divergence::Stuck { loss: 6.9 }));
        assert_eq!(of(6.9, &[0.0, 1.0, 0.0]), None, "not in a row");
        assert_eq!(of(1e-4, &[0.0; 9]), None, "the task is learned");
    }

    #[test]
    fn a_final_loss_far_above_the_first_is_a_failure() {
        assert!(MONITOR.check_end(Some(9.0), &[4.0, 3.0]).is_some_and(|why| why.contains("validation loss was 9.000")));
        assert_eq!(MONITOR.check_end(Some(7.9), &[4.0, 30.0]), None, "validation decides");
        assert!(MONITOR.check_end(None, &[4.0, 30.0]).is_some_and(|why| why.contains("training loss was 30.000")));
        assert!(MONITOR.check_end(Some(f32::NAN), &[4.0, 3.0]).is_some_and(|why| why.contains("loss was NaN")));
        assert_eq!(MONITOR.check_end(None, &[4.0]), None);
    }

    #[test]
    fn the_message_lists_the_rows_and_the_worst_one() {
        let rows = [(6, 0.5), (2, f64::NAN), (11, 3.0)];
        let message =
            MONITOR.check(f64::NAN, 1.0, &[], &[]).map(|divergence| divergence.describe(4, &rows)).unwrap_or_default();
        assert!(message.contains("step 4") && message.contains("rows 3, 7, 12, row 3 the worst"), "{message}");
        let many: Vec<(usize, f64)> = (0..20).map(|row| (row, row as f64)).collect();
        assert!(list_rows(&many).ends_with("7, 8 and 12 more") && worst_row(&many) == Some(19));
    }
}
