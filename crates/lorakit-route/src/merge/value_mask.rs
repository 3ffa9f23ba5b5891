//! Which of an expert's values are merged: the largest, all but the outliers, or a random share.
//!
//! Trimming by magnitude is from TIES (<https://arxiv.org/abs/2306.01708>), random dropping from DARE
//! (<https://arxiv.org/abs/2311.03099>), and dropping the largest values too from Model Breadcrumbs
//! (<https://arxiv.org/abs/2312.06795>). Magnitudes are compared in f32; among equal ones in a matrix the last are
//! kept, as PEFT did on recorded values (torch does not specify it).

use crate::merge::row_source::RowSource;
use crate::merge::task_vector_table::{Rescale, Scope, Sparsify, TaskVectorMethod};
use lorakit_format::rng::{CounterRng, Key};
use rand_chacha::rand_core::RngCore;

/// The position of a value in the order of decreasing magnitude; of equal values, the later in the matrix comes first.
#[derive(Clone, Copy, Debug)]
pub(super) struct MagnitudeOrder {
    magnitude: f32,
    index: usize,
}

impl MagnitudeOrder {
    /// Whether the value at `index` comes after this position.
    fn is_before(self, magnitude: f32, index: usize) -> bool {
        magnitude < self.magnitude || (magnitude == self.magnitude && index < self.index)
    }
}

/// Which values of a matrix are kept, and their rescaling factor.
pub(super) struct ValueMask {
    kept: KeptValues,
    factor: f64,
}

enum KeptValues {
    All,
    Nothing,
    /// Values after the first position, if there is one, up to the second.
    Between(Option<MagnitudeOrder>, MagnitudeOrder),
    /// Values whose 32-bit random number from the stream is below the threshold.
    Random(Box<CounterRng>, u64),
}

/// How much is kept, and the random seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct SparsifyConfig {
    pub density: f64,
    pub gamma: f64,
    pub seed: u64,
}

impl ValueMask {
    /// The mask of one matrix, identified by `name`; `threshold` is the magnitude threshold common to all of an
    /// expert's matrices, if there is one.
    pub(super) fn of(
        method: &TaskVectorMethod,
        config: SparsifyConfig,
        values: &RowSource,
        name: [&str; 3],
        threshold: Option<f32>,
    ) -> Self {
        let mut mask = Self { kept: KeptValues::All, factor: 1.0 };
        if config.density >= 1.0 || method.sparsify == Sparsify::None {
            return mask;
        }
        let count = (config.density * values.len() as f64) as usize;
        mask.kept = match method.sparsify {
            Sparsify::None => KeptValues::All,
            Sparsify::Magnitude(Scope::Expert) => match threshold {
                Some(magnitude) => KeptValues::Between(None, MagnitudeOrder { magnitude, index: 0 }),
                None => KeptValues::Nothing,
            },
            Sparsify::Magnitude(Scope::Matrix) => between(values, 0, count),
            Sparsify::Outliers => {
                // If too few values would be left, fewer of the largest are dropped.
                let largest = (config.gamma * values.len() as f64) as usize;
                between(values, largest.min(values.len() - count), count)
            }
            Sparsify::Random => {
                // A density of one was handled above, so that the threshold fits 32 bits.
                let below = (config.density * 2f64.powi(32)) as u64;
                KeptValues::Random(Box::new(stream(config.seed, name)), below)
            }
        };
        mask.factor = match method.rescale {
            Rescale::None => 1.0,
            Rescale::Density => 1.0 / config.density,
            Rescale::Magnitudes => mask.restoring_factor(values),
        };
        mask
    }

    /// Zeroes the dropped values of a row, and rescales the others.
    pub(super) fn apply(&mut self, row: usize, values: &mut [f64]) {
        let start = row * values.len();
        match &mut self.kept {
            KeptValues::All => {}
            KeptValues::Nothing => values.fill(0.0),
            KeptValues::Between(after, upto) => {
                for (at, value) in values.iter_mut().enumerate() {
                    let magnitude = magnitude(*value);
                    let outlier = after.is_some_and(|after| !after.is_before(magnitude, start + at));
                    if outlier || upto.is_before(magnitude, start + at) {
                        *value = 0.0;
                    }
                }
            }
            KeptValues::Random(stream, threshold) => {
                stream.seek(start as u64);
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

    /// The factor that keeps the sum of magnitudes; 1 if either sum is nearly zero, as in mergekit.
    fn restoring_factor(&mut self, values: &RowSource) -> f64 {
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

/// Drops the `skipped` largest values and keeps the next `count`.
fn between(values: &RowSource, skipped: usize, count: usize) -> KeptValues {
    if count == 0 {
        return KeptValues::Nothing;
    }
    let after = (skipped > 0).then(|| place(values, skipped));
    KeptValues::Between(after, place(values, skipped + count))
}

/// The position of the `nth` largest value of a matrix, from 1.
fn place(values: &RowSource, nth: usize) -> MagnitudeOrder {
    let (magnitude, mut equals) = nth_magnitude(std::slice::from_ref(values), nth);
    if magnitude == 0.0 {
        // It does not matter which zeros are kept.
        return MagnitudeOrder { magnitude, index: 0 };
    }
    let mut row_values = vec![0f64; values.columns()];
    for row in (0..values.rows()).rev() {
        values.row(row, &mut row_values);
        for (column, value) in row_values.iter().enumerate().rev() {
            if self::magnitude(*value) == magnitude {
                equals -= 1;
                if equals == 0 {
                    return MagnitudeOrder { magnitude, index: row * values.columns() + column };
                }
            }
        }
    }
    MagnitudeOrder { magnitude, index: 0 }
}

/// The magnitude threshold for all matrices of an expert together, so that the share `density` of their values is kept;
/// `None` if none are.
pub(super) fn threshold(matrices: &[RowSource], density: f64) -> Option<f32> {
    let all: usize = matrices.iter().map(RowSource::len).sum();
    let count = (density * all as f64) as usize;
    (count > 0).then(|| nth_magnitude(matrices, count).0)
}

/// The `nth` largest magnitude, from 1, and how many values of exactly that magnitude are among the `nth`.
///
/// Values are counted by the upper 16 bits of their magnitudes, then by the rest, which needs no copy of them.
fn nth_magnitude(matrices: &[RowSource], nth: usize) -> (f32, usize) {
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

/// The bucket that contains the `nth` value from the top, and its rank in the bucket.
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

/// The random stream of one matrix. It depends on the seed and on the matrix's name, so that adding an expert or a
/// module does not change the draws of the others.
fn stream(seed: u64, name: [&str; 3]) -> CounterRng {
    Key::of_bytes(format!("{seed}\n{}", name.join("\n"))).stream()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use std::path::Path;

    fn sparse(name: &str, rescale: Rescale, config: SparsifyConfig, values: &RowSource) -> Vec<f64> {
        let row = TaskVectorMethod::find(name, Some("mergekit")).unwrap();
        let method = TaskVectorMethod { rescale, ..*row };
        let mut mask = ValueMask::of(&method, config, values, ["m", "e", "delta"], None);
        let mut found = Vec::new();
        values.each_row(|row, of_row| {
            let mut of_row = of_row.to_vec();
            mask.apply(row, &mut of_row);
            found.extend(of_row);
        });
        found
    }

    fn config(density: f64, gamma: f64) -> SparsifyConfig {
        SparsifyConfig { density, gamma, seed: 0 }
    }

    #[test]
    #[ignore = "needs ../shared"]
    fn keeps_and_rescales_as_mergekit() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/mergekit_sparsify_oracle.json");
        let text = std::fs::read_to_string(path).unwrap();
        let oracle: serde_json::Value = serde_json::from_str(&text).unwrap();
        let flat =
            |key: &str| -> Vec<f64> { serde_json::from_value::<Vec<Vec<f64>>>(oracle[key].clone()).unwrap().concat() };
        let values = RowSource::Double(flat("input"), 5);
        for density in [0.3, 0.5, 0.8] {
            for (name, gamma, rescale, key) in [
                ("ties", 0.0, Rescale::None, "magnitude"),
                ("ties", 0.0, Rescale::Magnitudes, "magnitude_l1"),
                ("breadcrumbs", 0.1, Rescale::None, "outliers_g0.1"),
            ] {
                let found = sparse(name, rescale, config(density, gamma), &values);
                let expected = flat(&format!("{key}_{density}"));
                for (found, expected) in found.iter().zip(&expected) {
                    assert!((found - expected).abs() < 1e-6, "{key}_{density}: {found} {expected}");
                }
            }
        }
        // If gamma leaves no outlier to drop, mergekit 0.1.4 slices `[n:-0]` and keeps nothing; half would be correct.
        assert_eq!(oracle["outliers_g0.01_0.5_nonzero"], 0);
        let found = sparse("breadcrumbs", Rescale::None, config(0.5, 0.01), &values);
        assert_eq!(found.iter().filter(|value| **value != 0.0).count(), 10);
    }

    #[test]
    fn keeps_the_last_of_equal_magnitudes_and_an_exact_count() {
        let values = RowSource::Double(vec![1.0, -1.0, 2.0, 1.0, 1.0, -2.0], 3);
        assert_eq!(sparse("ties", Rescale::None, config(0.5, 0.0), &values), [0.0, 0.0, 2.0, 0.0, 1.0, -2.0]);
        assert_eq!(sparse("breadcrumbs", Rescale::None, config(0.5, 0.2), &values), [0.0, 0.0, 2.0, 1.0, 1.0, 0.0]);
        assert_eq!(sparse("ties", Rescale::None, config(0.1, 0.0), &values), [0.0; 6]);
    }

    #[test]
    fn streams_of_matrices_keep_their_values() {
        let words = |stream: &mut CounterRng| [stream.next_u32(), stream.next_u32()];
        let mut first = stream(0, ["m", "e", "delta"]);
        assert_eq!(words(&mut first), [183_565_745, 3_906_536_864]);
        first.seek(1001);
        assert_eq!(words(&mut first), [4_229_847_358, 2_920_199_939]);
        let mut second = stream(7, ["model.layers.0.self_attn.q_proj", "boolq", "A"]);
        assert_eq!(words(&mut second), [2_548_633_134, 3_796_757_478]);
    }

    #[test]
    fn a_random_share_keeps_the_expectation_and_depends_on_seed_and_name() {
        let values = RowSource::Double(vec![1.0; 40_000], 200);
        let kept = sparse("dare_linear", Rescale::Density, config(0.3, 0.0), &values);
        let mean = kept.iter().sum::<f64>() / 40_000.0;
        assert!((mean - 1.0).abs() < 0.03, "{mean}");
        assert_eq!(kept, sparse("dare_linear", Rescale::Density, config(0.3, 0.0), &values));
        assert_ne!(
            kept,
            sparse("dare_linear", Rescale::Density, SparsifyConfig { seed: 1, ..config(0.3, 0.0) }, &values)
        );
        let mut other = stream(0, ["m", "f", "delta"]);
        assert_ne!(other.next_u64(), stream(0, ["m", "e", "delta"]).next_u64());
        let restored = sparse("dare_linear", Rescale::Magnitudes, config(0.3, 0.0), &values);
        assert!((restored.iter().sum::<f64>() - 40_000.0).abs() < 1e-6);
    }
}
