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

/// Terms that are converted to f64 at once; a run is several.
const CHUNK: usize = 64;

/// Rows and columns of a part of a Gram matrix whose sums are made at once, in registers.
const TILE: usize = 4;

type Tile = [[f64; TILE]; TILE];

/// `A A'` and `B' B` of `a: [rank, in]` and `b: [out, rank]`: the inner products of the rows of A, and of the columns of B.
pub(crate) fn gram_matrices(a: &Matrix, b: &Matrix) -> [Mat<f64>; 2] {
    let rank = a.rows();
    let (a_values, b_values) = (a.values(), b.values());
    let a = Factor { values: &a_values, rank, terms: a.cols(), by_rows: true };
    let b = Factor { values: &b_values, rank, terms: b.rows(), by_rows: false };
    Arch::new().dispatch(GramMatrices { rank, factors: [a, b] })
}

/// `rank` vectors of `terms` values each, which are the rows of a matrix or its columns.
struct Factor<'a> {
    values: &'a [f32],
    rank: usize,
    terms: usize,
    by_rows: bool,
}

/// Both at once: a sum waits for its last addition at each term, while the other factor's can be made.
struct GramMatrices<'a> {
    rank: usize,
    factors: [Factor<'a>; 2],
}

impl WithSimd for GramMatrices<'_> {
    type Output = [Mat<f64>; 2];

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { rank, factors } = self;
        let width = rank.next_multiple_of(TILE);
        let mut grams = [Mat::zeros(rank, rank), Mat::zeros(rank, rank)];
        let tiles =
            || (0..rank).step_by(TILE).flat_map(|left| (0..=left).step_by(TILE).map(move |right| (left, right)));
        let mut sums = vec![[[[0.0; TILE]; TILE]; 2]; tiles().count()];
        let mut values = vec![0.0; 2 * CHUNK * width];
        let (of_a, of_b) = values.split_at_mut(CHUNK * width);
        let terms = factors[0].terms.max(factors[1].terms);
        for start in (0..terms).step_by(CHUNK) {
            let of_a = factors[0].convert(start, width, of_a);
            let of_b = factors[1].convert(start, width, of_b);
            for (place, sums) in tiles().zip(&mut sums) {
                add_chunks(simd, sums, [of_a, of_b], width, place);
            }
            let end = start + CHUNK;
            if end.is_multiple_of(RUN) || end >= terms {
                for (place, sums) in tiles().zip(&mut sums) {
                    grams.iter_mut().zip(sums).for_each(|(gram, sums)| add_run(gram, std::mem::take(sums), place));
                }
            }
        }
        grams
    }
}

impl Factor<'_> {
    /// The next terms from `start` on in f64, of each vector a value, `width` values apart.
    #[inline(always)]
    fn convert<'t>(&self, start: usize, width: usize, to: &'t mut [f64]) -> &'t [f64] {
        let terms = self.terms.saturating_sub(start).min(CHUNK);
        let to = &mut to[..terms * width];
        if terms == 0 {
            return to;
        }
        if self.by_rows {
            self.convert_rows(start, width, to);
            return to;
        }
        let values = &self.values[start * self.rank..][..terms * self.rank];
        if width == self.rank {
            to.iter_mut().zip(values).for_each(|(to, value)| *to = f64::from(*value));
            return to;
        }
        for (to, row) in to.chunks_exact_mut(width).zip(values.chunks_exact(self.rank)) {
            to.iter_mut().zip(row).for_each(|(to, value)| *to = f64::from(*value));
        }
        to
    }

    /// The same of vectors that are rows, several at once, so that places are not written one by one.
    #[inline(always)]
    fn convert_rows(&self, start: usize, width: usize, to: &mut [f64]) {
        let terms = to.len() / width;
        let row = |row: usize| &self.values[row * self.terms + start..][..terms];
        let tiled = self.rank / TILE * TILE;
        for first in (0..tiled).step_by(TILE) {
            let [a, b, c, d] = [row(first), row(first + 1), row(first + 2), row(first + 3)];
            for ((((to, a), b), c), d) in to.chunks_exact_mut(width).zip(a).zip(b).zip(c).zip(d) {
                to[first..first + TILE].copy_from_slice(&[*a, *b, *c, *d].map(f64::from));
            }
        }
        for last in tiled..self.rank {
            to.chunks_exact_mut(width).zip(row(last)).for_each(|(to, value)| to[last] = f64::from(*value));
        }
    }
}

/// Adds the products of the vectors from `left` on with those from `right` on, of a chunk of each factor.
#[inline(always)]
fn add_chunks<S: Simd>(simd: S, sums: &mut [Tile; 2], of: [&[f64]; 2], width: usize, place: (usize, usize)) {
    let [mut a_sums, mut b_sums] = *sums;
    let (a, a_rest) = of[0].split_at(of[0].len().min(of[1].len()));
    let (b, b_rest) = of[1].split_at(a.len());
    for (a, b) in a.chunks_exact(width).zip(b.chunks_exact(width)) {
        add_term(simd, &mut a_sums, a, place);
        add_term(simd, &mut b_sums, b, place);
    }
    a_rest.chunks_exact(width).for_each(|a| add_term(simd, &mut a_sums, a, place));
    b_rest.chunks_exact(width).for_each(|b| add_term(simd, &mut b_sums, b, place));
    *sums = [a_sums, b_sums];
}

#[inline(always)]
fn add_term<S: Simd>(_: S, sums: &mut Tile, term: &[f64], (left, right): (usize, usize)) {
    let (Some(x), Some(y)) = (term[left..].first_chunk::<TILE>(), term[right..].first_chunk::<TILE>()) else { return };
    for (sums, x) in sums.iter_mut().zip(x) {
        for (sum, y) in sums.iter_mut().zip(y) {
            // The same sum; where there is no instruction for it, a fused one is a function.
            *sum = if S::IS_SCALAR { x * y + *sum } else { x.mul_add(*y, *sum) };
        }
    }
}

/// Adds the sums of a run to the Gram matrix, on both sides of its diagonal.
fn add_run(gram: &mut Mat<f64>, sums: Tile, (left, right): (usize, usize)) {
    for i in left..gram.nrows().min(left + TILE) {
        for j in right..gram.nrows().min(right + TILE).min(i + 1) {
            gram[(i, j)] += sums[i - left][j - right];
            gram[(j, i)] = gram[(i, j)];
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Small integers, whose sums are exact in any order; ranks and lengths that tiles, chunks and runs do not divide.
    #[test]
    fn gram_matrices_match_the_definition() {
        for (rank, inputs, outputs) in
            [(1, 1, 600), (1, 600, 1), (3, 40, 64), (4, 512, 65), (5, 513, 513), (9, 1100, 7), (16, 2, 1024)]
        {
            let value = |vector: usize, term: usize| ((vector * 31 + term * 7) % 17) as f32 - 8.0;
            let rows = (0..rank).flat_map(|v| (0..inputs).map(move |t| value(v, t))).collect();
            let columns = (0..outputs).flat_map(|t| (0..rank).map(move |v| value(v, t))).collect();
            let (a, b) = (Matrix::new(rank, inputs, rows).unwrap(), Matrix::new(outputs, rank, columns).unwrap());
            let [of_rows, of_columns] = gram_matrices(&a, &b);
            for i in 0..rank {
                for j in 0..rank {
                    let expected = |terms| (0..terms).map(|t| f64::from(value(i, t) * value(j, t))).sum::<f64>();
                    let found = [of_rows[(i, j)], of_columns[(i, j)]];
                    assert_eq!(found, [expected(inputs), expected(outputs)], "{rank} {inputs} {outputs}: {i} {j}");
                }
            }
        }
    }

    /// The sums of one order, to the last bit.
    #[test]
    fn sums_are_those_of_runs_in_order() {
        for (rank, inputs, outputs) in [(3, 1100, 700), (4, 576, 192), (6, 130, 1100)] {
            let values = |count: usize| (0..count).map(|i| (i as f32 * 0.37).sin() * 0.02).collect::<Vec<f32>>();
            let (rows, columns) = (values(rank * inputs), values(outputs * rank));
            let a = Matrix::new(rank, inputs, rows.clone()).unwrap();
            let b = Matrix::new(outputs, rank, columns.clone()).unwrap();
            let [of_rows, of_columns] = gram_matrices(&a, &b);
            let in_runs = |products: Vec<f64>| {
                products
                    .chunks(RUN)
                    .map(|run| run.iter().fold(0.0, |sum, product| sum + product))
                    .fold(0.0, |sum, run| sum + run)
            };
            for (i, j) in (0..rank).flat_map(|i| (0..rank).map(move |j| (i, j))) {
                let product = |x: f32, y: f32| f64::from(x) * f64::from(y);
                let of_a = (0..inputs).map(|t| product(rows[i * inputs + t], rows[j * inputs + t])).collect();
                let of_b = (0..outputs).map(|t| product(columns[t * rank + i], columns[t * rank + j])).collect();
                assert_eq!(of_rows[(i, j)].to_bits(), in_runs(of_a).to_bits(), "{rank} {inputs}: {i} {j}");
                assert_eq!(of_columns[(i, j)].to_bits(), in_runs(of_b).to_bits(), "{rank} {outputs}: {i} {j}");
            }
        }
    }
}
