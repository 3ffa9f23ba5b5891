//! Products of few tokens with rows of a 16-bit matrix, as decoding makes them: bound by the memory that the weights are
//! read from.
//!
//! Each row is widened into the first-level cache, where all tokens are multiplied with it before the next row is read. A
//! sum has a fixed number of lanes whatever vectors a machine has, and products are not fused with sums, so that the values
//! are the same on every machine.

use lorakit_lora::kernels::simd::{Simd, WithSimd};

/// The most tokens for which these products are faster than widening whole tiles for matrix products.
pub(super) const FEW: usize = 8;

/// Tokens that share the loads of a row.
const BLOCK: usize = 4;

/// Partial sums of one token.
const LANES: usize = 32;

/// `y[r][t] = <w[r], x[t]>`, with `y` `[rows, tokens]`.
pub(super) struct RowProducts<'a, W> {
    /// Writes row `r` of the matrix as f32; inlined, so that it is compiled for the machine's vectors.
    pub(super) widen: W,
    /// The tokens, `[tokens, columns]`.
    pub(super) x: &'a [f32],
    /// Room for one row.
    pub(super) row: &'a mut [f32],
    /// The products, `[rows, tokens]`.
    pub(super) y: &'a mut [f32],
}

impl<W: Fn(usize, &mut [f32])> WithSimd for RowProducts<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { widen, x, row, y } = self;
        let columns = row.len();
        let tokens = x.len() / columns;
        for (r, y) in y.chunks_exact_mut(tokens).enumerate() {
            widen(r, row);
            for (x, y) in x.chunks(BLOCK * columns).zip(y.chunks_mut(BLOCK)) {
                match y {
                    [a, b, c, d] => [*a, *b, *c, *d] = products::<BLOCK, { LANES / 2 }>(row, x),
                    _ => {
                        for (x, y) in x.chunks_exact(columns).zip(y) {
                            [*y] = products::<1, LANES>(row, x);
                        }
                    }
                }
            }
        }
    }
}

/// The products of `TOKENS` tokens, `[TOKENS, columns]`, with one row.
#[inline(always)]
fn products<const TOKENS: usize, const LANES: usize>(row: &[f32], x: &[f32]) -> [f32; TOKENS] {
    let columns = row.len();
    let mut sums = [[0.0; LANES]; TOKENS];
    let mut x: [&[f32]; TOKENS] = std::array::from_fn(|t| &x[t * columns..][..columns]);
    let mut chunks = row.chunks_exact(LANES);
    for w in &mut chunks {
        for (sums, x) in sums.iter_mut().zip(&mut x) {
            let (head, rest) = x.split_at(LANES);
            for lane in 0..LANES {
                sums[lane] += head[lane] * w[lane];
            }
            *x = rest;
        }
    }
    let rest = chunks.remainder();
    std::array::from_fn(|t| total(sums[t]) + rest.iter().zip(x[t]).map(|(w, x)| w * x).sum::<f32>())
}

/// The sum of all lanes: the upper half is added to the lower one until one lane is left.
#[inline(always)]
fn total<const LANES: usize>(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorakit_lora::kernels::simd;

    /// Small integers, whose sums are exact in any order; rows that no number of lanes divides, and blocks that are not full.
    #[test]
    fn products_of_any_number_of_tokens_match_the_definition() {
        let integers =
            |count: usize, step: usize| -> Vec<f32> { (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect() };
        for columns in [1, 31, 32, 33, 100, 576] {
            for tokens in 1..=FEW + 1 {
                let (w, x) = (integers(5 * columns, 7), integers(tokens * columns, 5));
                let (mut row, mut y) = (vec![0.0; columns], vec![9.0; 5 * tokens]);
                let widen = |r: usize, row: &mut [f32]| row.copy_from_slice(&w[r * columns..][..columns]);
                simd::dispatch(RowProducts { widen, x: &x, row: &mut row, y: &mut y });
                for (i, y) in y.iter().enumerate() {
                    let (w, x) = (&w[i / tokens * columns..][..columns], &x[i % tokens * columns..][..columns]);
                    assert_eq!(*y, w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>(), "{columns} {tokens} {i}");
                }
            }
        }
    }
}
