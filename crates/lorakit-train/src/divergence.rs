//! When training has gone wrong: a loss or gradient that is no number, a loss that jumps or ends far too high, or a
//! gradient that is gone.

/// Updates that a jump is measured against, beside the first ones.
const RECENT: usize = 20;

/// The first updates, whose losses are those that training set out from.
const FIRST: usize = 3;

/// Updates with no gradient at all after which an expert is dead.
const DEAD: usize = 3;

/// A loss below which there is nothing left to learn: there the gradient may well be zero.
const LEARNT: f64 = 1e-2;

/// Rows of a batch that a message names.
const NAMED: usize = 8;

/// What training is judged by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DivergenceMonitor {
    /// How many times what the loss was it may be; 0: any.
    pub factor: f64,
    /// Tokens that the base knows.
    pub vocabulary: usize,
}

/// Why an expert is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Divergence {
    /// Its loss or its gradient's norm is no number.
    NoNumber { loss: f64, norm: f64 },
    /// Its loss, over two updates, is far above all that it was lately, or at first.
    Jump { mean: f64, limit: f64 },
    /// Nothing moves it any more.
    Dead { loss: f64 },
}

impl DivergenceMonitor {
    /// What is wrong with an update, if anything is: `losses` and `norms` are those of the updates before it.
    ///
    /// A loss has jumped where the mean of it and the one before is above the [limit](Self::limit) of those before: the
    /// mean of two, since one odd row lasts for one update and a training that breaks stays broken.
    pub(crate) fn trouble(&self, loss: f64, norm: f64, losses: &[f32], norms: &[f32]) -> Option<Divergence> {
        if !loss.is_finite() || !norm.is_finite() {
            return Some(Divergence::NoNumber { loss, norm });
        }
        let still = norm == 0.0 && norms.iter().rev().take_while(|norm| **norm == 0.0).count() + 1 >= DEAD;
        if still && loss > LEARNT {
            return Some(Divergence::Dead { loss });
        }
        let (last, earlier) = losses.split_last()?;
        let (mean, limit) = (0.5 * (loss + f64::from(*last)), self.limit(earlier)?);
        (mean > limit).then_some(Divergence::Jump { mean, limit })
    }

    /// Why an expert is given up at its end, if it is: its last validation loss, or without one its last training
    /// losses (two of them, after an update), are above the limit of its first.
    pub(crate) fn at_end(&self, validation: Option<f32>, losses: &[f32]) -> Option<String> {
        let (first, after) = losses.split_first()?;
        let latest = &after[after.len().saturating_sub(2)..];
        let mean = || latest.iter().map(|loss| f64::from(*loss)).sum::<f64>() / latest.len() as f64;
        let (what, end) = validation.map_or_else(|| ("training", mean()), |loss| ("validation", f64::from(loss)));
        let limit = self.limit(std::slice::from_ref(first))?;
        (end > limit).then(|| {
            format!(
                "after its last update, {}, its {what} loss was {end:.3}, where it began with {first:.3} and {limit:.3} \
                 was the limit; try a lower learning_rate, or allow more by max_loss_jump",
                losses.len()
            )
        })
    }

    /// The highest loss that is none of a broken training: the factor times the highest of the latest, but no more than
    /// times the highest of the first ones, so that a loss that rises does not take its limit along; and in any case
    /// `ln(vocabulary)`, what guessing costs, since an expert that has learnt its task has losses near zero, of which
    /// anything is a multiple. None where there are no losses to measure against.
    fn limit(&self, losses: &[f32]) -> Option<f64> {
        let highest = |losses: &[f32]| losses.iter().copied().reduce(f32::max).map(f64::from);
        let recent = highest(&losses[losses.len().saturating_sub(RECENT)..])?;
        let first = highest(&losses[..losses.len().min(FIRST)])?;
        (self.factor > 0.0).then(|| (self.factor * recent.min(first)).max((self.vocabulary as f64).ln()))
    }
}

impl Divergence {
    /// What happened at `update`, whose `rows` are training rows by index, each with its share in the loss.
    pub(crate) fn told(&self, update: usize, rows: &[(usize, f64)]) -> String {
        let (what, remedy) = match self {
            Self::NoNumber { loss, norm } => (
                format!("its loss was {loss} and its gradient's norm {norm}"),
                "look at the row, or try a lower learning_rate",
            ),
            Self::Jump { mean, limit } => (
                format!(
                    "its loss had jumped to {mean:.3}, the mean of the last two updates, where {limit:.3} was the limit"
                ),
                "look at the row, try a lower learning_rate, or allow more by max_loss_jump",
            ),
            // No row is to blame.
            Self::Dead { loss } => {
                return format!(
                    "at update {update} its gradient was exactly zero, as at the {} before it, at a loss of {loss:.3}: \
                     nothing moves it any more; try a lower learning_rate",
                    DEAD - 1
                );
            }
        };
        let worst = worst(rows).map_or(String::new(), |row| format!(", row {} the worst", row + 1));
        format!("at update {update} {what}, on the training rows {}{worst}; {remedy}", named(rows))
    }
}

/// The row with the highest loss; one that is no number is higher than all.
fn worst(rows: &[(usize, f64)]) -> Option<usize> {
    let key = |loss: f64| if loss.is_nan() { f64::INFINITY } else { loss };
    rows.iter().max_by(|(a, x), (b, y)| key(*x).total_cmp(&key(*y)).then(b.cmp(a))).map(|(row, _)| *row)
}

/// The rows as users count them, from one, in file order.
fn named(rows: &[(usize, f64)]) -> String {
    let mut numbers: Vec<usize> = rows.iter().map(|(row, _)| row + 1).collect();
    numbers.sort_unstable();
    let more = numbers.len().saturating_sub(NAMED);
    let first: Vec<String> = numbers.iter().take(NAMED).map(usize::to_string).collect();
    if more > 0 { format!("{} and {more} more", first.join(", ")) } else { first.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCH: DivergenceMonitor = DivergenceMonitor { factor: 2.0, vocabulary: 1000 };

    fn of(losses: &[f32], loss: f64) -> Option<Divergence> {
        WATCH.trouble(loss, 1.0, losses, &vec![1.0; losses.len()])
    }

    #[test]
    fn a_jump_lasts_two_updates_and_is_far_above_the_latest_losses_and_above_guessing() {
        assert_eq!(of(&[2.4, 3.0, 2.6, 8.0], 6.3), Some(Divergence::Jump { mean: 7.15, limit: 1000f64.ln() }));
        assert_eq!(of(&[4.0, 4.0, 4.0, 8.0], 7.9), None, "not twice as high");
        assert!(matches!(of(&[4.0, 4.0, 4.0, 8.0], 8.1), Some(Divergence::Jump { limit: 8.0, .. })));
        assert_eq!(of(&[0.01; 30], 10.0), None, "one odd row");
        let fallen: Vec<f32> = std::iter::once(50.0).chain([4.0; RECENT]).chain([9.0]).collect();
        assert!(of(&fallen, 9.0).is_some(), "what is long ago does not count");
        let any = DivergenceMonitor { factor: 0.0, ..WATCH };
        assert_eq!(any.trouble(90.0, 1.0, &fallen, &[]), None, "switched off");
        assert_eq!(any.at_end(Some(90.0), &fallen), None, "switched off");
        assert!(matches!(WATCH.trouble(1.0, f64::INFINITY, &[], &[]), Some(Divergence::NoNumber { .. })));
    }

    #[test]
    fn the_first_updates_are_judged_and_no_loss_takes_its_limit_along() {
        assert_eq!(of(&[], 90.0), None, "what the base itself costs");
        assert_eq!(of(&[4.0], 90.0), None, "one update");
        assert!(of(&[4.0, 60.0], 55.0).is_some());
        let rising: Vec<f32> = (0..40).map(|update| 4.0 * 1.1f32.powi(update)).collect();
        let stopped = (2..40).find(|&at| of(&rising[..at], rising[at].into()).is_some());
        assert!(stopped.is_some_and(|at| rising[at] < 12.0), "{stopped:?}");
    }

    #[test]
    fn a_gradient_of_zero_ends_what_has_not_learnt_its_task() {
        let of = |loss, norms: &[f32]| WATCH.trouble(loss, 0.0, &vec![7.0; norms.len()], norms);
        assert_eq!(of(6.9, &[1.0, 0.0, 0.0]), Some(Divergence::Dead { loss: 6.9 }));
        assert_eq!(of(6.9, &[0.0, 1.0, 0.0]), None, "not running");
        assert_eq!(of(1e-4, &[0.0; 9]), None, "nothing is left to learn");
    }

    #[test]
    fn an_end_far_above_the_start_is_no_training() {
        assert!(WATCH.at_end(Some(9.0), &[4.0, 3.0]).is_some_and(|why| why.contains("validation loss was 9.000")));
        assert_eq!(WATCH.at_end(Some(7.9), &[4.0, 30.0]), None, "validation decides");
        assert!(WATCH.at_end(None, &[4.0, 30.0]).is_some_and(|why| why.contains("training loss was 30.000")));
        assert_eq!(WATCH.at_end(None, &[4.0]), None);
    }

    #[test]
    fn the_batch_is_named_with_its_worst_row() {
        let rows = [(6, 0.5), (2, f64::NAN), (11, 3.0)];
        let told = WATCH.trouble(f64::NAN, 1.0, &[], &[]).map(|trouble| trouble.told(4, &rows)).unwrap_or_default();
        assert!(told.contains("update 4") && told.contains("rows 3, 7, 12, row 3 the worst"), "{told}");
        let many: Vec<(usize, f64)> = (0..20).map(|row| (row, row as f64)).collect();
        assert!(named(&many).ends_with("7, 8 and 12 more") && worst(&many) == Some(19));
    }
}
