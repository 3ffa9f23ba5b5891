//! Products of few tokens with rows of a matrix, as decoding makes them: bound by the memory that the weights are read
//! from.
//!
//! Each row is read once, in order, and multiplied with all tokens before the next one. A sum has a fixed number of lanes
//! whatever vectors a machine has and however many tokens there are, and products are not fused with sums: the values are
//! the same on every machine, and a token's do not depend on the tokens beside it.

use lorakit_lora::kernels::simd::{Simd, WithSimd};

/// The most tokens for which these products are faster than matrix products of whole tiles.
pub(super) const FEW: usize = 8;

/// Tokens that share the loads of a row.
const BLOCK: usize = 4;

/// Partial sums of one token: of a block's tokens, as many as the registers of AVX2 hold.
const LANES: usize = 16;

/// `y[r][t] = <w[r], x[t]>`, with `y` `[rows, tokens]`, of rows whose values are widened as they are read.
pub(super) struct RowProducts<'a, T, F> {
    /// The rows, `[rows, columns]`.
    pub(super) rows: &'a [T],
    /// Values of a row.
    pub(super) columns: usize,
    /// A value as f32; inlined, so that it is compiled for the machine's vectors.
    pub(super) widen: F,
    /// The tokens, `[tokens, columns]`.
    pub(super) x: &'a [f32],
    /// The products, `[rows, tokens]`.
    pub(super) y: &'a mut [f32],
}

impl<T: Copy, F: Fn(T) -> f32> WithSimd for RowProducts<'_, T, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { rows, columns, widen, x, y } = self;
        for (row, y) in rows.chunks_exact(columns).zip(y.chunks_exact_mut(x.len() / columns)) {
            row_products(row, &widen, x, y);
        }
    }
}

/// The same of rows that are written to `row` one after the other, such as quantised ones.
pub(super) struct WrittenRowProducts<'a, W> {
    /// Writes row `r` of the matrix as f32.
    pub(super) write: W,
    /// The tokens, `[tokens, columns]`.
    pub(super) x: &'a [f32],
    /// Room for one row.
    pub(super) row: &'a mut [f32],
    /// The products, `[rows, tokens]`.
    pub(super) y: &'a mut [f32],
}

impl<W: Fn(usize, &mut [f32])> WithSimd for WrittenRowProducts<'_, W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { write, x, row, y } = self;
        let tokens = x.len() / row.len();
        for (r, y) in y.chunks_exact_mut(tokens).enumerate() {
            write(r, row);
            row_products(row, &|value| value, x, y);
        }
    }
}

/// The products of one row with all tokens.
#[inline(always)]
fn row_products<T: Copy>(row: &[T], widen: &impl Fn(T) -> f32, x: &[f32], y: &mut [f32]) {
    let columns = row.len();
    for (x, y) in x.chunks(BLOCK * columns).zip(y.chunks_mut(BLOCK)) {
        match y {
            [a, b, c, d] => [*a, *b, *c, *d] = products::<BLOCK, T>(row, widen, x),
            [a, b, c] => [*a, *b, *c] = products::<3, T>(row, widen, x),
            [a, b] => [*a, *b] = products::<2, T>(row, widen, x),
            [a] => [*a] = products::<1, T>(row, widen, x),
            _ => {}
        }
    }
}

/// The products of `TOKENS` tokens, `[TOKENS, columns]`, with one row.
#[inline(always)]
fn products<const TOKENS: usize, T: Copy>(row: &[T], widen: &impl Fn(T) -> f32, x: &[f32]) -> [f32; TOKENS] {
    let columns = row.len();
    let mut sums = [[0.0; LANES]; TOKENS];
    let mut x: [&[f32]; TOKENS] = std::array::from_fn(|t| &x[t * columns..][..columns]);
    let mut chunks = row.chunks_exact(LANES);
    for w in &mut chunks {
        let mut wide = [0.0; LANES];
        for (wide, w) in wide.iter_mut().zip(w) {
            *wide = widen(*w);
        }
        for (sums, x) in sums.iter_mut().zip(&mut x) {
            let (head, rest) = x.split_at(LANES);
            for lane in 0..LANES {
                sums[lane] += head[lane] * wide[lane];
            }
            *x = rest;
        }
    }
    let rest = chunks.remainder();
    std::array::from_fn(|t| total(sums[t]) + rest.iter().zip(x[t]).map(|(w, x)| widen(*w) * x).sum::<f32>())
}

/// The sum of all lanes: the upper half is added to the lower one until one lane is left.
#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
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
    use half::bf16;
    use lorakit_lora::kernels::simd::SimdLevel;

    fn integers(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    /// Small integers, whose sums are exact in any order; rows that no number of lanes divides, blocks that are not full,
    /// and every level of vectors that the machine has.
    #[test]
    fn products_of_any_number_of_tokens_match_the_definition() {
        for (columns, tokens) in [1, 31, 32, 33, 100, 576].into_iter().flat_map(|c| (1..=FEW + 1).map(move |t| (c, t)))
        {
            let (w, x) = (integers(5 * columns, 7), integers(tokens * columns, 5));
            let narrow: Vec<bf16> = w.iter().copied().map(bf16::from_f32).collect();
            let (rows, x) = (&w[..], &x[..]);
            for level in SimdLevel::available() {
                let mut all = [vec![9.0; 5 * tokens], vec![9.0; 5 * tokens], vec![9.0; 5 * tokens]];
                let [plain, widened, written] = &mut all;
                level.dispatch(RowProducts { rows, columns, widen: |value: f32| value, x, y: plain });
                level.dispatch(RowProducts { rows: &narrow[..], columns, widen: bf16::to_f32, x, y: widened });
                let write = |r: usize, row: &mut [f32]| row.copy_from_slice(&w[r * columns..][..columns]);
                level.dispatch(WrittenRowProducts { write, x, row: &mut vec![0.0; columns], y: written });
                for (i, [plain, widened, written]) in (0..5 * tokens).map(|i| (i, [0, 1, 2].map(|form| all[form][i]))) {
                    let (w, x) = (&w[i / tokens * columns..][..columns], &x[i % tokens * columns..][..columns]);
                    let expected = w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
                    assert_eq!([plain, widened, written], [expected; 3], "{level:?} {columns} {tokens} {i}");
                }
            }
        }
    }

    /// Values whose sums depend on their order, and a token of NaN beside them.
    #[test]
    fn the_products_of_a_token_do_not_depend_on_the_others() {
        const COLUMNS: usize = 100;
        let values = |count: usize, step: f32| -> Vec<f32> { (0..count).map(|i| (i as f32 * step).sin()).collect() };
        let (w, x) = (values(5 * COLUMNS, 0.7), values(FEW * COLUMNS, 0.3));
        let rows = &w[..];
        let products = |level: SimdLevel, x: &[f32]| {
            let mut y = vec![9.0; 5 * x.len() / COLUMNS];
            level.dispatch(RowProducts { rows, columns: COLUMNS, widen: |value: f32| value, x, y: &mut y });
            y
        };
        for level in SimdLevel::available() {
            for tokens in 1..=FEW {
                let mut x = x[..tokens * COLUMNS].to_vec();
                x[(tokens / 2) * COLUMNS..][..COLUMNS].fill(f32::NAN);
                let together = products(level, &x);
                for (token, x) in x.chunks_exact(COLUMNS).enumerate() {
                    let own: Vec<u32> = together.iter().skip(token).step_by(tokens).map(|y| y.to_bits()).collect();
                    let alone: Vec<u32> = products(level, x).into_iter().map(f32::to_bits).collect();
                    assert!(own == alone || token == tokens / 2, "{level:?}, {tokens} tokens, token {token}");
                }
            }
        }
    }
}
