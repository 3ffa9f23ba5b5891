//! The Gram matrices of an update's factors, in f64.
//!
//! A factor is long and narrow, and of a large library there are hundreds of thousands: a general product of matrices of
//! this shape takes several times as long. Sums run along the long side in order, and so are the same with vectors of any
//! width: the product of two f32 is exact in f64, with or without a fused addition.

use faer::Mat;
use pulp::{Arch, Simd, WithSimd};

use crate::matrix::Matrix;

/// Terms that are summed up before their sum goes to that of all.
const RUN: usize = 512;

/// Rows and columns of a part of the Gram matrix whose sums are made at once, in registers.
const TILE: usize = 4;

/// `M M'` of a matrix `[rank, n]`: the inner products of its rows.
pub(crate) fn gram_of_rows(matrix: &Matrix) -> Mat<f64> {
    let values = matrix.values();
    gram(matrix.rows(), matrix.cols(), |start, run, width| {
        for (row, values) in values.chunks_exact(matrix.cols()).enumerate() {
            let places = run.iter_mut().skip(row).step_by(width);
            places.zip(&values[start..]).for_each(|(to, value)| *to = f64::from(*value));
        }
    })
}

/// `M' M` of a matrix `[n, rank]`: the inner products of its columns.
pub(crate) fn gram_of_columns(matrix: &Matrix) -> Mat<f64> {
    let values = matrix.values();
    gram(matrix.cols(), matrix.rows(), |start, run, width| {
        let rows = values.chunks_exact(matrix.cols()).skip(start);
        for (to, row) in run.chunks_exact_mut(width).zip(rows) {
            to.iter_mut().zip(row).for_each(|(to, value)| *to = f64::from(*value));
        }
    })
}

/// The Gram matrix of `rank` vectors of `terms` values. `fill` is given the first term of a run, a place for its values term
/// by term, and the distance of two terms there.
fn gram(rank: usize, terms: usize, fill: impl Fn(usize, &mut [f64], usize)) -> Mat<f64> {
    let width = rank.next_multiple_of(TILE);
    let mut gram = Mat::zeros(rank, rank);
    let mut run = vec![0.0; RUN.min(terms) * width];
    for start in (0..terms).step_by(RUN) {
        let run = &mut run[..RUN.min(terms - start) * width];
        fill(start, run, width);
        for left in (0..rank).step_by(TILE) {
            for right in (0..=left).step_by(TILE) {
                let sums = Arch::new().dispatch(TileSums { run, width, left, right });
                for i in left..rank.min(left + TILE) {
                    for j in right..rank.min(right + TILE).min(i + 1) {
                        gram[(i, j)] += sums[i - left][j - right];
                        gram[(j, i)] = gram[(i, j)];
                    }
                }
            }
        }
    }
    gram
}

/// Of a run of terms, the sums of the products of the vectors from `left` on with those from `right` on.
struct TileSums<'a> {
    run: &'a [f64],
    width: usize,
    left: usize,
    right: usize,
}

impl WithSimd for TileSums<'_> {
    type Output = [[f64; TILE]; TILE];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        let mut sums = [[0.0; TILE]; TILE];
        for term in self.run.chunks_exact(self.width) {
            let (Some(x), Some(y)) = (term[self.left..].first_chunk(), term[self.right..].first_chunk()) else {
                continue;
            };
            let (x, y): (&[f64; TILE], &[f64; TILE]) = (x, y);
            for (sums, x) in sums.iter_mut().zip(x) {
                sums.iter_mut().zip(y).for_each(|(sum, y)| *sum += x * y);
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Small integers, whose sums are exact in any order; ranks and lengths that tiles and runs do not divide.
    #[test]
    fn gram_matrices_match_the_definition() {
        for (rank, terms) in [(1, 1), (1, 600), (3, 40), (4, 512), (5, 513), (9, 1100), (16, 2)] {
            let value = |vector: usize, term: usize| ((vector * 31 + term * 7) % 17) as f32 - 8.0;
            let rows = (0..rank).flat_map(|v| (0..terms).map(move |t| value(v, t))).collect();
            let columns = (0..terms).flat_map(|t| (0..rank).map(move |v| value(v, t))).collect();
            let of_rows = gram_of_rows(&Matrix::new(rank, terms, rows).unwrap());
            let of_columns = gram_of_columns(&Matrix::new(terms, rank, columns).unwrap());
            for i in 0..rank {
                for j in 0..rank {
                    let expected: f64 = (0..terms).map(|t| f64::from(value(i, t) * value(j, t))).sum();
                    assert_eq!([of_rows[(i, j)], of_columns[(i, j)]], [expected; 2], "{rank} {terms}: {i} {j}");
                }
            }
        }
    }

    /// The sums of one order, to the last bit.
    #[test]
    fn sums_are_those_of_runs_in_order() {
        let (rank, terms) = (3, 1100);
        let values: Vec<f32> = (0..rank * terms).map(|i| (i as f32 * 0.37).sin() * 0.02).collect();
        let gram = gram_of_rows(&Matrix::new(rank, terms, values.clone()).unwrap());
        let vector =
            |of: usize| values[of * terms..][..terms].iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
        let (x, y) = (vector(2), vector(1));
        let run = |(x, y): (&[f64], &[f64])| x.iter().zip(y).fold(0.0, |sum, (x, y)| sum + x * y);
        let expected = x.chunks(RUN).zip(y.chunks(RUN)).map(run).fold(0.0, |sum, run| sum + run);
        assert_eq!(gram[(2, 1)].to_bits(), expected.to_bits());
        assert_eq!(gram[(1, 2)].to_bits(), expected.to_bits());
    }
}
