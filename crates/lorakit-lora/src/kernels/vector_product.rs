//! Products of one vector with some rows of a matrix, as for a decoded token: setting up a matrix product would take longer
//! than computing it.

use crate::kernels::simd::{self, Simd, WithSimd};

/// Partial sums of an inner product, the same on every machine.
const LANES: usize = 16;

/// `y[r] = <row r, x>` of consecutive rows.
///
/// # Panics
/// If `x` is empty.
pub fn row_products(rows: &[f32], x: &[f32], y: &mut [f32]) {
    simd::dispatch(RowProducts { rows, x, y });
}

/// `y += scale * sum_r weights[r] * row r` of rows that start `stride` values apart and are as long as `y`.
///
/// # Panics
/// If there are fewer rows than weights.
pub fn add_weighted_rows(y: &mut [f32], rows: &[f32], stride: usize, weights: &[f32], scale: f32) {
    simd::dispatch(AddRows { y, rows, stride, weights, scale });
}

/// The sum of lanes, a power of two: the upper half is added to the lower one until one is left. To be called
/// within [`simd::dispatch`].
#[inline(always)]
pub fn lane_sum<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut width = N / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

struct RowProducts<'a> {
    rows: &'a [f32],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for RowProducts<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { rows, x, y } = self;
        rows.chunks_exact(x.len()).zip(y).for_each(|(row, y)| *y = inner_product(row, x));
    }
}

/// The inner product of two rows of equal length, in 16 partial sums. To be called within [`simd::dispatch`].
#[inline(always)]
pub fn inner_product(row: &[f32], x: &[f32]) -> f32 {
    let ((row, row_rest), (x, x_rest)) = (row.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    let mut lanes = [0.0f32; LANES];
    for (row, x) in row.iter().zip(x) {
        (0..LANES).for_each(|lane| lanes[lane] += row[lane] * x[lane]);
    }
    lane_sum(lanes) + row_rest.iter().zip(x_rest).map(|(row, x)| row * x).sum::<f32>()
}

struct AddRows<'a> {
    y: &'a mut [f32],
    rows: &'a [f32],
    stride: usize,
    weights: &'a [f32],
    scale: f32,
}

impl WithSimd for AddRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { y, rows, stride, weights, scale } = self;
        for (r, weight) in weights.iter().enumerate() {
            let (factor, row) = (scale * weight, &rows[r * stride..][..y.len()]);
            y.iter_mut().zip(row).for_each(|(y, value)| *y += factor * value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::SimdLevel;

    /// Small integers, whose sums are exact in any order, in lengths that no vector divides.
    #[test]
    fn products_and_sums_match_the_definition() {
        let integers =
            |count: usize, step: usize| -> Vec<f32> { (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect() };
        for columns in [1, 15, 16, 100, 576] {
            let (rows, x) = (integers(3 * columns, 5), integers(columns, 7));
            for level in SimdLevel::available() {
                let mut y = [9.0; 3];
                level.dispatch(RowProducts { rows: &rows, x: &x, y: &mut y });
                let expected = |r: usize| rows[r * columns..].iter().zip(&x).map(|(row, x)| row * x).sum::<f32>();
                assert_eq!(y, [0, 1, 2].map(expected), "{level:?} {columns}");
                let (width, mut sums) = (columns.div_ceil(2), x[..columns.div_ceil(2)].to_vec());
                level.dispatch(AddRows {
                    y: &mut sums,
                    rows: &rows,
                    stride: columns,
                    weights: &[2.0, -1.0],
                    scale: 0.5,
                });
                let expected = (0..width).map(|i| x[i] + 0.5 * (2.0 * rows[i] - rows[columns + i]));
                assert!(sums.iter().copied().eq(expected), "{level:?} {columns}");
            }
        }
    }
}
