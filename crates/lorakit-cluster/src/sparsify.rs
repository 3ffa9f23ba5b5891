//! The sparsification of MBC: within one expert's vector, small values become zero.

/// One bin per value of the upper bits of a magnitude: all of the exponent and four bits of the mantissa, so that
/// the counters stay in the first-level cache and the bin of a median holds a few per cent of the values.
const SHIFT: u32 = 19;
const BINS: usize = 1 << (31 - SHIFT);

/// The magnitude below and at which values are dropped for `sparsity` in [0, 1]: an expert's
/// `|v| <= quantile(|v|, sparsity)` become zero (arXiv 2405.11157, in its code).
///
/// The quantile interpolates between two neighbours in order, `a[k]` and `a[k + 1]`, and no value lies between
/// them: dropping up to the quantile is dropping up to `a[k]`, which is what is returned, with
/// `k = floor((n - 1) * sparsity)`. `None` where nothing is to be dropped: at sparsity 0, or without values.
///
/// `slices` is called twice and gives the parts of the vector; they are never joined in memory.
pub(crate) fn threshold<'a, I>(slices: impl Fn() -> I, sparsity: f64) -> Option<f32>
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

/// The bin of a magnitude; bins are in the order of the magnitudes, as the bits of positive floats are.
fn bin(value: f32) -> usize {
    (value.abs().to_bits() >> SHIFT) as usize
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::borrow::Cow;

    use super::*;
    use crate::planted::normal;

    /// numpy's `quantile(|v|, s)` by linear interpolation, and what it leaves.
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
            let threshold = threshold(parts, sparsity).unwrap();
            let kept: Vec<bool> = values.iter().map(|v| v.abs() > threshold).collect();
            assert_eq!(kept, kept_by_quantile(&values, sparsity), "sparsity {sparsity}");
        }
    }

    #[test]
    fn equal_magnitudes_fall_together() {
        let values = [1.0f32, -1.0, 1.0, 2.0];
        assert_eq!(threshold(|| std::iter::once(Cow::Borrowed(&values[..])), 0.5), Some(1.0));
    }

    #[test]
    fn sparsity_zero_drops_nothing() {
        assert_eq!(threshold(|| std::iter::once(Cow::Borrowed(&[1.0f32][..])), 0.0), None);
    }
}
