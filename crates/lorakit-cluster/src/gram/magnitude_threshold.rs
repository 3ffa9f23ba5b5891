//! The sparsification of MBC: the quantile of an expert's magnitudes below which values become zero.

/// Magnitudes are counted by their upper bits, the exponent and four bits of the mantissa: few enough bins for the L1 cache,
/// and enough that the bin of a median has only a few per cent of the values.
const SHIFT: u32 = 19;
const BINS: usize = 1 << (31 - SHIFT);

/// The largest magnitude that becomes zero for `sparsity` in [0, 1]: values with `|v| <= quantile(|v|, sparsity)` do, as in
/// the code of arXiv:2405.11157.
///
/// The quantile interpolates between two neighbors in sorted order, `a[k]` and `a[k + 1]` with
/// `k = floor((n - 1) * sparsity)`. No value is between them, so `a[k]` separates the same values and is returned. None if
/// nothing becomes zero: at sparsity 0, or without values.
///
/// `slices` is called twice and gives the parts of the vector, which are never joined in memory.
pub(crate) fn magnitude_threshold<'a, I>(slices: impl Fn() -> I, sparsity: f64) -> Option<f32>
where
    I: Iterator<Item = std::borrow::Cow<'a, [f32]>>,
{
    if sparsity == 0.0 {
        return None;
    }
    let mut counts = vec![0usize; BINS];
    for slice in slices() {
        slice.iter().for_each(|value| counts[bin(*value)] += 1);
    }
    let total: usize = counts.iter().sum();
    let mut rank = (total.checked_sub(1)? as f64 * sparsity) as usize;
    let chosen = counts.iter().position(|count| {
        let here = rank < *count;
        rank -= if here { 0 } else { *count };
        here
    })?;
    let mut candidates = Vec::with_capacity(counts[chosen]);
    for slice in slices() {
        candidates.extend(slice.iter().filter(|value| bin(**value) == chosen).map(|value| value.abs()));
    }
    let (_, threshold, _) = candidates.select_nth_unstable_by(rank, f32::total_cmp);
    Some(*threshold)
}

/// The bin of a magnitude. Bins are ordered as magnitudes are, since the bits of positive floats are.
fn bin(value: f32) -> usize {
    (value.abs().to_bits() >> SHIFT) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::borrow::Cow;

    use super::*;
    use crate::synthetic::normal;

    /// The values above numpy's `quantile(|v|, s)` by linear interpolation.
    fn kept_by_quantile(values: &[f32], sparsity: f64) -> Vec<bool> {
        let mut sorted: Vec<f64> = values.iter().map(|v| f64::from(v.abs())).collect();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() - 1) as f64 * sparsity;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        let quantile = low + (high - low) * at.fract();
        values.iter().map(|v| f64::from(v.abs()) > quantile).collect()
    }

    #[test]
    fn the_values_kept_are_those_above_the_interpolated_quantile() {
        let values = normal(3, 1001);
        for sparsity in [0.1, 0.25, 0.5, 0.8, 0.9999, 1.0] {
            let parts = || values.chunks(100).map(Cow::Borrowed);
            let threshold = magnitude_threshold(parts, sparsity).unwrap();
            let kept: Vec<bool> = values.iter().map(|v| v.abs() > threshold).collect();
            assert_eq!(kept, kept_by_quantile(&values, sparsity), "sparsity {sparsity}");
        }
    }

    #[test]
    fn equal_magnitudes_are_treated_alike() {
        let values = [1.0f32, -1.0, 1.0, 2.0];
        assert_eq!(magnitude_threshold(|| std::iter::once(Cow::Borrowed(&values[..])), 0.5), Some(1.0));
    }

    #[test]
    fn sparsity_zero_drops_nothing() {
        assert_eq!(magnitude_threshold(|| std::iter::once(Cow::Borrowed(&[1.0f32][..])), 0.0), None);
    }
}
