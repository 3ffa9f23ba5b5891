//! Products with a matrix of few rows, as the A of an adapter is: `z = x Aᵀ`.
//!
//! Every value of `z` is an inner product along the rows of both, summed in the lanes of vectors. A matrix product sums it
//! value by value, and what that loses to rounding was the largest part of an adapter's error: over bases whose attention
//! scores reach 55, logits were up to twice as far from those of float64.

use crate::kernels::gemm::{Destination, MatrixMut, MatrixRef, gemm};
use crate::kernels::simd::{Simd, SimdLevel, WithSimd};

/// The most rows of A that are multiplied so. Over 576 and 2,048 columns it is 2.3 to 3.1 times as fast as a matrix product
/// with 4 rows, 1.3 to 1.7 with 8, 0.9 to 1.1 with 12, and 0.7 to 0.8 with 16, the q, k and v of a small rank together.
const FEW_ROWS: usize = 16;

/// Tokens and rows of A of a block: as many sums as there are registers for.
const BLOCK_TOKENS: usize = 2;
const BLOCK_ROWS: usize = 4;

/// The widest vectors used, so that x86 machines of either width sum in the same order.
const LANES: SimdLevel = SimdLevel::Avx2;

/// Vectors that a block adds up before their sum goes to that of all: long rows too are summed in short runs.
const RUN: usize = 32;

/// `z = x Aᵀ`: `x` is `[tokens, columns]`, `a` is `[rows, columns]`, and `z`, `[tokens, rows]`, is overwritten.
///
/// # Panics
/// If the dimensions do not agree.
pub fn narrow_product(x: &[f32], a: &[f32], columns: usize, z: &mut [f32]) {
    let (tokens, rows) = (x.len() / columns, a.len() / columns);
    assert_eq!((x.len(), a.len(), z.len()), (tokens * columns, rows * columns, tokens * rows), "values of a product");
    if z.is_empty() {
        return;
    }
    if rows <= FEW_ROWS {
        return LANES.min(SimdLevel::current()).dispatch(NarrowProduct { x, a, columns, z });
    }
    let (x, a) = (MatrixRef::new(x, tokens, columns, columns), MatrixRef::new(a, rows, columns, columns));
    gemm(MatrixMut::new(z, tokens, rows, rows), Destination::Overwrite, x, a.transposed(), 1.0);
}

struct NarrowProduct<'a> {
    x: &'a [f32],
    a: &'a [f32],
    columns: usize,
    z: &'a mut [f32],
}

impl WithSimd for NarrowProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, a, columns, z } = self;
        let rows = a.len() / columns;
        let whole = z.len() / rows / BLOCK_TOKENS * BLOCK_TOKENS;
        let (x, x_rest) = x.split_at(whole * columns);
        let (z, z_rest) = z.split_at_mut(whole * rows);
        for (x, z) in x.chunks_exact(BLOCK_TOKENS * columns).zip(z.chunks_exact_mut(BLOCK_TOKENS * rows)) {
            block_products::<S, BLOCK_TOKENS>(simd, x, a, columns, z);
        }
        // The last of an odd number.
        for (x, z) in x_rest.chunks_exact(columns).zip(z_rest.chunks_exact_mut(rows)) {
            block_products::<S, 1>(simd, x, a, columns, z);
        }
    }
}

/// `z`, `[T, rows]`, of `T` tokens.
#[inline(always)]
fn block_products<S: Simd, const T: usize>(simd: S, x: &[f32], a: &[f32], columns: usize, z: &mut [f32]) {
    let rows = z.len() / T;
    let x: [&[f32]; T] = std::array::from_fn(|token| &x[token * columns..][..columns]);
    let row = |row: usize| &a[row * columns..][..columns];
    let whole = rows / BLOCK_ROWS * BLOCK_ROWS;
    for first in (0..whole).step_by(BLOCK_ROWS) {
        let sums = inner_products::<S, T, BLOCK_ROWS>(simd, x, std::array::from_fn(|i| row(first + i)));
        (0..T).for_each(|token| z[token * rows + first..][..BLOCK_ROWS].copy_from_slice(&sums[token]));
    }
    for first in whole..rows {
        let sums = inner_products::<S, T, 1>(simd, x, [row(first)]);
        (0..T).for_each(|token| z[token * rows + first] = sums[token][0]);
    }
}

/// The inner products of `T` rows with `R` others, all of one length.
#[inline(always)]
fn inner_products<S: Simd, const T: usize, const R: usize>(simd: S, x: [&[f32]; T], a: [&[f32]; R]) -> [[f32; R]; T] {
    let zero = simd.splat_f32s(0.0);
    let (mut totals, x_split, a_split) = ([[zero; R]; T], x.map(S::as_simd_f32s), a.map(S::as_simd_f32s));
    let vectors = x_split[0].0.len();
    for start in (0..vectors).step_by(RUN) {
        let run = start..(start + RUN).min(vectors);
        let (x, a) = (x_split.map(|(row, _)| &row[run.clone()]), a_split.map(|(row, _)| &row[run.clone()]));
        let mut sums = [[zero; R]; T];
        for i in 0..run.len() {
            let a = a.map(|row| row[i]);
            for (x, sums) in x.iter().zip(&mut sums) {
                let x = x[i];
                sums.iter_mut().zip(a).for_each(|(sum, a)| *sum = simd.mul_add_e_f32s(x, a, *sum));
            }
        }
        for (totals, sums) in totals.iter_mut().zip(sums) {
            totals.iter_mut().zip(sums).for_each(|(total, sum)| *total = simd.add_f32s(*total, sum));
        }
    }
    let mut products = [[0.0; R]; T];
    for (products, (totals, (_, x))) in products.iter_mut().zip(totals.iter().zip(&x_split)) {
        for (product, (&total, (_, a))) in products.iter_mut().zip(totals.iter().zip(&a_split)) {
            let rest = x.iter().zip(*a).map(|(x, a)| x * a).sum::<f32>();
            *product = simd.reduce_sum_f32s(total) + rest;
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers, whose sums are exact in any order, in numbers that no block and no vector divides.
    #[test]
    fn products_match_the_definition() {
        let integers =
            |count: usize, step: usize| -> Vec<f32> { (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect() };
        for (tokens, rows, columns) in [(1, 1, 3), (3, 4, 64), (7, 9, 100), (64, 16, 1100), (5, 33, 70), (0, 4, 8)] {
            let (x, a) = (integers(tokens * columns, 5), integers(rows * columns, 7));
            let inner = |t: usize, r: usize| (0..columns).map(|i| x[t * columns + i] * a[r * columns + i]).sum::<f32>();
            let expected: Vec<f32> =
                (0..tokens).flat_map(|t| (0..rows).map(move |r| (t, r))).map(|(t, r)| inner(t, r)).collect();
            for level in SimdLevel::available() {
                let mut z = vec![f32::NAN; tokens * rows];
                level.dispatch(NarrowProduct { x: &x, a: &a, columns, z: &mut z });
                assert_eq!(z, expected, "{level:?} {tokens} {rows} {columns}");
            }
            let mut z = vec![f32::NAN; tokens * rows];
            narrow_product(&x, &a, columns, &mut z);
            assert_eq!(z, expected, "{tokens} {rows} {columns}");
        }
    }

    /// A token's products do not depend on the tokens beside it.
    #[test]
    fn tokens_alone_and_together_give_the_same_bits() {
        let (columns, rows) = (150, 8);
        let x: Vec<f32> = (0..9 * columns).map(|i| (i as f32 * 0.7).sin()).collect();
        let a: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 1.3).cos()).collect();
        let mut together = vec![0.0; 9 * rows];
        narrow_product(&x, &a, columns, &mut together);
        for (x, together) in x.chunks_exact(columns).zip(together.chunks_exact(rows)) {
            let mut alone = vec![0.0; rows];
            narrow_product(x, &a, columns, &mut alone);
            assert_eq!(alone, together);
        }
    }
}
