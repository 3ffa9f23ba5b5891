//! Which of an expert's values take part: the largest, all but the outliers, or a random share.
//!
//! Trimming by magnitude is that of TIES (<https://arxiv.org/abs/2306.01708>), the random share that of DARE
//! (<https://arxiv.org/abs/2311.03099>), leaving out the largest as well that of model breadcrumbs
//! (<https://arxiv.org/abs/2312.06795>). Magnitudes are compared as f32, and of equal ones in a matrix the
//! last are kept, which is what PEFT did on recorded values; torch leaves it open.

use super::recipe::{Recipe, Rescale, Scope, Sparsify};
use super::values::Values;
use lorakit_format::hash::sha256;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// Where a value stands in the order of magnitudes: the larger before the smaller, and of equal ones the later in the
/// matrix before the earlier.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    magnitude: f32,
    index: usize,
}

impl Place {
    /// Whether the value at `index` comes after this place.
    fn is_before(self, magnitude: f32, index: usize) -> bool {
        magnitude < self.magnitude || (magnitude == self.magnitude && index < self.index)
    }
}

/// What is kept of a matrix, and what it is multiplied by.
pub(super) struct Mask {
    kept: Kept,
    factor: f64,
}

enum Kept {
    All,
    Nothing,
    /// After the first place, if there is one, and not after the second.
    Between(Option<Place>, Place),
    /// The values whose number, drawn from the stream, is below the threshold.
    Random(Box<ChaCha8Rng>, u64),
}

/// How much is kept, and what is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Amount {
    pub density: f64,
    pub gamma: f64,
    pub seed: u64,
}

impl Mask {
    /// The mask of one matrix, of which `name` says whose and which it is; `cut` is where all of an expert's matrices
    /// are cut together.
    pub(super) fn of(recipe: &Recipe, amount: Amount, values: &Values, name: [&str; 3], cut: Option<f32>) -> Self {
        let mut mask = Self { kept: Kept::All, factor: 1.0 };
        if amount.density >= 1.0 || recipe.sparsify == Sparsify::None {
            return mask;
        }
        let count = (amount.density * values.len() as f64) as usize;
        mask.kept = match recipe.sparsify {
            Sparsify::None => Kept::All,
            Sparsify::Magnitude(Scope::Expert) => match cut {
                Some(magnitude) => Kept::Between(None, Place { magnitude, index: 0 }),
                None => Kept::Nothing,
            },
            Sparsify::Magnitude(Scope::Matrix) => between(values, 0, count),
            Sparsify::Outliers => {
                // Where too few would be left, fewer of the largest go.
                let largest = (amount.gamma * values.len() as f64) as usize;
                between(values, largest.min(values.len() - count), count)
            }
            Sparsify::Random => {
                // A share of exactly one was answered above, so that the threshold fits 32 bits.
                let threshold = (amount.density * 2f64.powi(32)) as u64;
                Kept::Random(Box::new(stream(amount.seed, name)), threshold)
            }
        };
        mask.factor = match recipe.rescale {
            Rescale::None => 1.0,
            Rescale::Density => 1.0 / amount.density,
            Rescale::Magnitudes => mask.restoring_factor(values),
        };
        mask
    }

    /// Zeroes what is dropped of a row, and rescales the rest.
    pub(super) fn apply(&mut self, row: usize, values: &mut [f64]) {
        let start = row * values.len();
        match &mut self.kept {
            Kept::All => {}
            Kept::Nothing => values.fill(0.0),
            Kept::Between(after, upto) => {
                for (at, value) in values.iter_mut().enumerate() {
                    let magnitude = magnitude(*value);
                    let outlier = after.is_some_and(|after| !after.is_before(magnitude, start + at));
                    if outlier || upto.is_before(magnitude, start + at) {
                        *value = 0.0;
                    }
                }
            }
            Kept::Random(stream, threshold) => {
                stream.set_word_pos(start as u128);
                for value in values.iter_mut() {
                    if u64::from(stream.next_u32()) >= *threshold {
                        *value = 0.0;
                    }
                }
            }
        }
        if self.factor != 1.0 {
            values.iter_mut().for_each(|value| *value *= self.factor);
        }
    }

    /// What keeps the sum of magnitudes; 1 where either is nearly zero, as mergekit has it.
    fn restoring_factor(&mut self, values: &Values) -> f64 {
        const NEARLY_ZERO: f64 = 1e-7;
        let (mut before, mut after) = (0.0, 0.0);
        let mut kept = vec![0f64; values.columns()];
        values.each_row(|row, values| {
            before += values.iter().map(|value| value.abs()).sum::<f64>();
            kept.copy_from_slice(values);
            self.apply(row, &mut kept);
            after += kept.iter().map(|value| value.abs()).sum::<f64>();
        });
        if before < NEARLY_ZERO || after < NEARLY_ZERO { 1.0 } else { before / after }
    }
}

/// Leaves out the `skipped` largest and keeps the next `count`.
fn between(values: &Values, skipped: usize, count: usize) -> Kept {
    if count == 0 {
        return Kept::Nothing;
    }
    let after = (skipped > 0).then(|| place(values, skipped));
    Kept::Between(after, place(values, skipped + count))
}

/// The place of the `nth` largest value of a matrix, from 1.
fn place(values: &Values, nth: usize) -> Place {
    let (magnitude, mut equals) = nth_magnitude(std::slice::from_ref(values), nth);
    if magnitude == 0.0 {
        // Whichever zeros are kept, they are zeros.
        return Place { magnitude, index: 0 };
    }
    let mut row_values = vec![0f64; values.columns()];
    for row in (0..values.rows()).rev() {
        values.row(row, &mut row_values);
        for (column, value) in row_values.iter().enumerate().rev() {
            if self::magnitude(*value) == magnitude {
                equals -= 1;
                if equals == 0 {
                    return Place { magnitude, index: row * values.columns() + column };
                }
            }
        }
    }
    Place { magnitude, index: 0 }
}

/// Where an expert's matrices are cut together, so that the share `density` of all their values is kept; `None` where
/// nothing is.
pub(super) fn cut(matrices: &[Values], density: f64) -> Option<f32> {
    let all: usize = matrices.iter().map(Values::len).sum();
    let count = (density * all as f64) as usize;
    (count > 0).then(|| nth_magnitude(matrices, count).0)
}

/// The `nth` largest magnitude, from 1, and how many values of that very magnitude are among the `nth`.
///
/// Counted by the bits of the magnitudes, 16 and then the rest, so that no copy of the values is needed.
fn nth_magnitude(matrices: &[Values], nth: usize) -> (f32, usize) {
    const LOW: u32 = 16;
    let count = |bucket: &dyn Fn(u32) -> Option<usize>| {
        let mut counts = vec![0usize; 1 << LOW];
        for matrix in matrices {
            matrix.each_row(|_, row| {
                for value in row {
                    if let Some(bucket) = bucket(magnitude(*value).to_bits()) {
                        counts[bucket] += 1;
                    }
                }
            });
        }
        counts
    };
    let (high, left) = from_the_top(&count(&|bits| Some((bits >> LOW) as usize)), nth);
    let within = |bits: u32| (bits >> LOW == high as u32).then_some((bits & ((1 << LOW) - 1)) as usize);
    let (low, equals) = from_the_top(&count(&within), left);
    (f32::from_bits((high as u32) << LOW | low as u32), equals)
}

/// The bucket in which the `nth` from the top lies, and its number there.
fn from_the_top(counts: &[usize], nth: usize) -> (usize, usize) {
    let mut left = nth;
    for (bucket, count) in counts.iter().enumerate().rev() {
        if left <= *count {
            return (bucket, left);
        }
        left -= count;
    }
    (0, left)
}

fn magnitude(value: f64) -> f32 {
    value.abs() as f32
}

/// The stream of one matrix. It depends on the seed and on whose and which matrix it is, so that adding an expert or a
/// module changes nothing that is drawn for the others.
fn stream(seed: u64, name: [&str; 3]) -> ChaCha8Rng {
    let digest = sha256(format!("{seed}\n{}", name.join("\n")).as_bytes());
    let mut key = [0u8; 32];
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digest[2 * at..2 * at + 2], 16).unwrap_or_default();
    }
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]
    use super::super::recipe::Convention;
    use super::*;
    use std::path::Path;

    fn sparse(name: &str, rescale: Rescale, amount: Amount, values: &Values) -> Vec<f64> {
        let row = Recipe::find(name, Some(Convention::Mergekit)).unwrap();
        let recipe = Recipe { rescale, ..*row };
        let mut mask = Mask::of(&recipe, amount, values, ["m", "e", "delta"], None);
        let mut found = Vec::new();
        values.each_row(|row, of_row| {
            let mut of_row = of_row.to_vec();
            mask.apply(row, &mut of_row);
            found.extend(of_row);
        });
        found
    }

    fn amount(density: f64, gamma: f64) -> Amount {
        Amount { density, gamma, seed: 0 }
    }

    #[test]
    fn what_is_kept_and_rescaled_is_what_mergekit_keeps() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/mergekit_sparsify_oracle.json");
        let Ok(text) = std::fs::read_to_string(path) else {
            println!("skipped: no ../shared");
            return;
        };
        let oracle: serde_json::Value = serde_json::from_str(&text).unwrap();
        let flat =
            |key: &str| -> Vec<f64> { serde_json::from_value::<Vec<Vec<f64>>>(oracle[key].clone()).unwrap().concat() };
        let values = Values::Double(flat("input"), 5);
        for density in [0.3, 0.5, 0.8] {
            for (name, gamma, rescale, key) in [
                ("ties", 0.0, Rescale::None, "magnitude"),
                ("ties", 0.0, Rescale::Magnitudes, "magnitude_l1"),
                ("breadcrumbs", 0.1, Rescale::None, "outliers_g0.1"),
            ] {
                let found = sparse(name, rescale, amount(density, gamma), &values);
                let expected = flat(&format!("{key}_{density}"));
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-6, "{key}_{density}: {found} {expected}");
                }
            }
        }
        // Where gamma leaves no outlier to drop, mergekit 0.1.4 slices `[n:-0]` and keeps nothing; half is right.
        assert_eq!(oracle["outliers_g0.01_0.5_nonzero"], 0);
        let found = sparse("breadcrumbs", Rescale::None, amount(0.5, 0.01), &values);
        assert_eq!(found.iter().filter(|value| **value != 0.0).count(), 10);
    }

    #[test]
    fn of_equal_magnitudes_the_last_are_kept_and_the_count_is_exact() {
        let values = Values::Double(vec![1.0, -1.0, 2.0, 1.0, 1.0, -2.0], 3);
        assert_eq!(sparse("ties", Rescale::None, amount(0.5, 0.0), &values), [0.0, 0.0, 2.0, 0.0, 1.0, -2.0]);
        assert_eq!(sparse("breadcrumbs", Rescale::None, amount(0.5, 0.2), &values), [0.0, 0.0, 2.0, 1.0, 1.0, 0.0]);
        assert_eq!(sparse("ties", Rescale::None, amount(0.1, 0.0), &values), [0.0; 6]);
    }

    #[test]
    fn a_random_share_keeps_the_expectation_and_depends_on_seed_and_name() {
        let values = Values::Double(vec![1.0; 40_000], 200);
        let kept = sparse("dare_linear", Rescale::Density, amount(0.3, 0.0), &values);
        let mean = kept.iter().sum::<f64>() / 40_000.0;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        assert_eq!(kept, sparse("dare_linear", Rescale::Density, amount(0.3, 0.0), &values));
        assert_ne!(kept, sparse("dare_linear", Rescale::Density, Amount { seed: 1, ..amount(0.3, 0.0) }, &values));
        let mut other = stream(0, ["m", "f", "delta"]);
        assert_ne!(other.next_u64(), stream(0, ["m", "e", "delta"]).next_u64());
        let restored = sparse("dare_linear", Rescale::Magnitudes, amount(0.3, 0.0), &values);
        assert!((restored.iter().sum::<f64>() - 40_000.0).abs() < 1e-6);
    }
}
