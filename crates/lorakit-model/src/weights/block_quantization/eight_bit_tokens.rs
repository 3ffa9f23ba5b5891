//! Tokens rounded to 8 bits for integer products with quantized weights.

use lorakit_lora::kernels::simd::{self, Simd, WithSimd};

/// Values that share a scale.
pub(super) const GROUP: usize = 32;

/// Values of a step: those of one block of the larger kind.
pub(super) const STEP: usize = 256;

/// Groups of a step.
pub(super) const PARTS: usize = STEP / GROUP;

/// Tokens `[tokens, columns]` as whole numbers from -127 to 127 with a scale for each 32 of them: of a value, at most half
/// of its group's scale is lost, which is the group's largest magnitude divided by 127. llama.cpp rounds in the same way,
/// for K types with a scale for 256.
///
/// Each token is filled up with zeros to whole steps of 256 values. A value that is not finite makes its group's scale NaN
/// or infinite, and so every product that reads it.
pub(crate) struct EightBitTokens {
    columns: usize,
    /// `[tokens, steps * 256]`.
    quants: Vec<i8>,
    /// Of each group, `[tokens, steps * 8]`.
    scales: Vec<f32>,
    /// The sum of each group's rounded values, times its scale, `[tokens, steps * 8]`.
    sums: Vec<f32>,
    /// The same for each 16 values, `[tokens, steps * 16]`.
    half_sums: Vec<f32>,
}

/// One rounded token.
#[derive(Clone, Copy)]
pub(super) struct EightBitToken<'a> {
    pub(super) quants: &'a [i8],
    pub(super) scales: &'a [f32],
    pub(super) sums: &'a [f32],
    pub(super) half_sums: &'a [f32],
}

impl EightBitTokens {
    /// Rounds tokens of `columns` values, a multiple of 32.
    pub(crate) fn new(x: &[f32], columns: usize) -> Self {
        debug_assert_eq!(columns % GROUP, 0);
        let (tokens, steps) = (x.len() / columns, columns.div_ceil(STEP));
        let mut rounded = Self {
            columns,
            quants: vec![0; tokens * steps * STEP],
            scales: vec![0.0; tokens * steps * PARTS],
            sums: vec![0.0; tokens * steps * PARTS],
            half_sums: vec![0.0; tokens * steps * PARTS * 2],
        };
        simd::dispatch(Round { x, steps, rounded: &mut rounded });
        rounded
    }

    /// Values of a token.
    pub(super) fn columns(&self) -> usize {
        self.columns
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.quants.len() / self.width()
    }

    fn width(&self) -> usize {
        self.columns.div_ceil(STEP) * STEP
    }

    pub(super) fn token(&self, index: usize) -> EightBitToken<'_> {
        let (width, groups) = (self.width(), self.width() / GROUP);
        EightBitToken {
            quants: &self.quants[index * width..][..width],
            scales: &self.scales[index * groups..][..groups],
            sums: &self.sums[index * groups..][..groups],
            half_sums: &self.half_sums[index * groups * 2..][..groups * 2],
        }
    }
}

struct Round<'a> {
    x: &'a [f32],
    steps: usize,
    rounded: &'a mut EightBitTokens,
}

impl WithSimd for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { x, steps, rounded } = self;
        for (t, x) in x.chunks_exact(rounded.columns).enumerate() {
            for (g, x) in x.as_chunks::<GROUP>().0.iter().enumerate() {
                let g = t * steps * PARTS + g;
                let (quants, scale) = round(x);
                let halves = [0, 1].map(|h| quants[16 * h..][..16].iter().map(|&q| i32::from(q)).sum::<i32>());
                rounded.quants[g * GROUP..][..GROUP].copy_from_slice(&quants);
                rounded.scales[g] = scale;
                rounded.sums[g] = scale * (halves[0] + halves[1]) as f32;
                rounded.half_sums[2 * g] = scale * halves[0] as f32;
                rounded.half_sums[2 * g + 1] = scale * halves[1] as f32;
            }
        }
    }
}

/// A group's rounded values and their scale.
#[inline(always)]
fn round(x: &[f32; GROUP]) -> ([i8; GROUP], f32) {
    // Magnitudes as whole numbers, so that a NaN is the largest.
    let largest = x.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff));
    let largest = f32::from_bits(largest);
    let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
    let mut quants = [0; GROUP];
    for (quant, x) in quants.iter_mut().zip(x) {
        *quant = (x * inverse).round_ties_even() as i32 as i8;
    }
    (quants, largest / 127.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_moves_by_at_most_half_a_scale_and_sums_are_those_of_the_rounded_values() {
        let columns = 288;
        let x: Vec<f32> = (0..3 * columns).map(|i| ((i * i) as f32 * 0.37).sin() * (i % 7) as f32).collect();
        let rounded = EightBitTokens::new(&x, columns);
        assert_eq!(rounded.len(), 3);
        for (t, x) in x.chunks_exact(columns).enumerate() {
            let token = rounded.token(t);
            for (i, x) in x.iter().enumerate() {
                let scale = token.scales[i / GROUP];
                assert!((f32::from(token.quants[i]) * scale - x).abs() <= scale * 0.501, "{t} {i}");
            }
            for (h, sum) in token.half_sums.iter().enumerate() {
                let whole: i32 = token.quants[16 * h..][..16].iter().map(|&q| i32::from(q)).sum();
                assert_eq!(*sum, whole as f32 * token.scales[h / 2]);
            }
            assert!(token.quants[columns..].iter().all(|&q| q == 0));
        }
    }

    #[test]
    fn a_group_that_is_not_finite_has_no_finite_scale() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = vec![1.0; 64];
            x[40] = bad;
            let rounded = EightBitTokens::new(&x, 64);
            let token = rounded.token(0);
            assert!(token.scales[0].is_finite() && !token.scales[1].is_finite());
        }
    }
}
