//! When training has gone wrong: a loss or gradient that is no number, or a loss that jumps.

/// Updates that a jump is measured against, and how many of them there must have been.
const RECENT: usize = 20;
const ENOUGH: usize = 3;

/// Rows of a batch that a message names.
const NAMED: usize = 8;

/// Why an expert is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Trouble {
    /// Its loss or its gradient's norm is no number.
    NoNumber { loss: f64, norm: f64 },
    /// Its loss, over two updates, is far above all that it was lately.
    Jump { mean: f64, limit: f64 },
}

impl Trouble {
    /// What is wrong with an update, if anything is: `losses` are those of the updates before it.
    ///
    /// A loss has jumped where the mean of it and the one before is more than `factor` times the highest of the 20
    /// before those, and more than `ln(vocabulary)`, what guessing costs. The mean of two, since one odd row lasts for
    /// one update and a training that breaks stays broken; the second condition, since an expert that has learnt its
    /// task has losses near zero, of which anything is a multiple.
    pub(crate) fn of(loss: f64, norm: f64, losses: &[f32], factor: f64, vocabulary: usize) -> Option<Self> {
        if !loss.is_finite() || !norm.is_finite() {
            return Some(Self::NoNumber { loss, norm });
        }
        let (last, earlier) = losses.split_last()?;
        let recent = &earlier[earlier.len().saturating_sub(RECENT)..];
        let highest = recent.iter().copied().fold(0.0, f32::max);
        let limit = (factor * f64::from(highest)).max((vocabulary as f64).ln());
        let mean = 0.5 * (loss + f64::from(*last));
        (factor > 0.0 && recent.len() >= ENOUGH && mean > limit).then_some(Self::Jump { mean, limit })
    }

    /// What happened at `update`, whose `rows` are training rows by index, each with its share in the loss.
    pub(crate) fn told(&self, update: usize, rows: &[(usize, f64)]) -> String {
        let what = match self {
            Self::NoNumber { loss, norm } => format!("its loss was {loss} and its gradient's norm {norm}"),
            Self::Jump { mean, limit } => format!(
                "its loss had jumped to {mean:.3}, the mean of the last two updates, where {limit:.3} was the limit"
            ),
        };
        let remedy = match self {
            Self::NoNumber { .. } => "look at the row, or try a lower learning_rate",
            Self::Jump { .. } => "look at the row, try a lower learning_rate, or allow more by max_loss_jump",
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

    #[test]
    fn a_jump_lasts_two_updates_and_is_far_above_the_latest_losses_and_above_guessing() {
        let of = |losses: &[f32], loss| Trouble::of(loss, 1.0, losses, 2.0, 1000);
        assert_eq!(of(&[2.4, 3.0, 2.6, 8.0], 6.3), Some(Trouble::Jump { mean: 7.15, limit: 1000f64.ln() }));
        assert_eq!(of(&[4.0, 4.0, 4.0, 8.0], 7.9), None, "not twice as high");
        assert!(matches!(of(&[4.0, 4.0, 4.0, 8.0], 8.1), Some(Trouble::Jump { limit: 8.0, .. })));
        assert_eq!(of(&[4.0, 4.0, 8.0], 8.1), None, "too few to tell");
        assert_eq!(of(&[0.01; 30], 10.0), None, "one odd row");
        let fallen: Vec<f32> = std::iter::once(50.0).chain([4.0; RECENT]).chain([9.0]).collect();
        assert!(of(&fallen, 9.0).is_some(), "what is long ago does not count");
        assert_eq!(Trouble::of(90.0, 1.0, &fallen, 0.0, 1000), None, "switched off");
        assert!(matches!(Trouble::of(1.0, f64::INFINITY, &[], 2.0, 9), Some(Trouble::NoNumber { .. })));
    }

    #[test]
    fn the_batch_is_named_with_its_worst_row() {
        let rows = [(6, 0.5), (2, f64::NAN), (11, 3.0)];
        let told = Trouble::of(f64::NAN, 1.0, &[], 2.0, 9).map(|trouble| trouble.told(4, &rows)).unwrap_or_default();
        assert!(told.contains("update 4") && told.contains("rows 3, 7, 12, row 3 the worst"), "{told}");
        let many: Vec<(usize, f64)> = (0..20).map(|row| (row, row as f64)).collect();
        assert!(named(&many).ends_with("7, 8 and 12 more") && worst(&many) == Some(19));
    }
}
