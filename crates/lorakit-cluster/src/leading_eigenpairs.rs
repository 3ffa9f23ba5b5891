//! The leading eigenpairs of a large symmetric matrix, by a block Krylov method with thick restarts (Zhou and Saad, "Block
//! Krylov-Schur method for large symmetric eigenvalue problems", Numerical Algorithms 47, 2008).
//!
//! The complete decomposition of `[n, n]` costs n^3; this costs n^2 for each vector that is multiplied. A block is wider
//! than the number of pairs asked for, so that an eigenvalue that occurs as often is found as often, which methods of
//! single vectors do not promise. All vectors stay orthogonal to all others, and the projected matrix is computed from
//! products, not from recurrences, so that rounding cannot accumulate. Work is divided over threads in a fixed way: the
//! result does not depend on their number.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par, Scale, Side};
use lorakit_format::rng::CounterRng;
use rayon::prelude::*;

/// How many more vectors a block has than pairs are asked for.
const GUARD_VECTORS: usize = 8;

/// How many blocks the basis has before it is restarted: its own eigenproblem stays small beside the products.
const BLOCKS: usize = 16;

/// The largest residual `|M u - value u|` of a found pair, relative to the largest eigenvalue. Rounding alone leaves about
/// 1e-15.
const TOLERANCE: f64 = 1e-13;

/// Rows or columns of a product that one task computes. Fixed, since the result's last bits depend on it.
const CHUNK: usize = 128;

/// In an orthonormalization: the eigenvalue of the Gram matrix of unit vectors below which a direction is rounding.
const DEPENDENT: f64 = 1e-14;

/// Vectors whose lengths a projection shortens to no less than this were orthogonal before.
const ORTHOGONAL: f64 = 0.5;

/// How often a block is orthogonalized at most. Two passes do, unless vectors were dependent.
const MAX_PASSES: usize = 5;

/// The number of restarts that any matrix is worth.
const LEAST_RESTARTS: usize = 12;

/// Eigenvalues in descending order, and their unit vectors by columns.
#[derive(Debug)]
pub(crate) struct Eigenpairs {
    pub values: Vec<f64>,
    pub vectors: Mat<f64>,
}

/// Whether [`leading_eigenpairs`] is faster than the complete decomposition of `[n, n]`: below, its basis would be a large
/// part of the whole space.
pub(crate) fn is_worthwhile(n: usize, count: usize) -> bool {
    n >= 2 * BLOCKS * (count + GUARD_VECTORS)
}

/// The `count` largest eigenvalues of a symmetric matrix without large negative ones, and their vectors; None where they
/// are not found at the cost of a complete decomposition: where more eigenvalues than a block has vectors are nearly,
/// but not quite, equal.
pub(crate) fn leading_eigenpairs(matrix: MatRef<'_, f64>, count: usize) -> Option<Eigenpairs> {
    let n = matrix.nrows();
    let block = count + GUARD_VECTORS;
    if n < BLOCKS * block {
        return None;
    }
    let mut rng = CounterRng::seeded(0, 0);
    let mut basis = Basis::new(matrix, BLOCKS * block);
    let mut next = basis.orthonormal(random(n, block, &mut rng), &mut rng)?;
    // A restart takes 2 n^2 operations for each vector, and a complete decomposition 9 n^3.
    let restarts = (5 * n / (BLOCKS * block)).max(LEAST_RESTARTS);
    for _ in 0..restarts {
        while basis.len + block <= BLOCKS * block {
            basis.expand(&next);
            let last = basis.images.subcols(basis.len - block, block).to_owned();
            next = basis.orthonormal(last, &mut rng)?;
        }
        let ritz = basis.ritz(2 * count)?;
        if basis.holds(&ritz, count) {
            let vectors = product(basis.vectors.subcols(0, basis.len), ritz.vectors.subcols(0, count));
            return Some(Eigenpairs { values: ritz.values[..count].to_vec(), vectors });
        }
        basis.restart(&ritz);
    }
    None
}

/// Orthonormal vectors with their products with the matrix.
struct Basis<'a> {
    matrix: MatRef<'a, f64>,
    /// `[n, largest number]`, of which the first `len` columns are filled.
    vectors: Mat<f64>,
    /// The matrix times these.
    images: Mat<f64>,
    /// `vectors' images`.
    projected: Mat<f64>,
    len: usize,
}

impl<'a> Basis<'a> {
    fn new(matrix: MatRef<'a, f64>, largest: usize) -> Self {
        let n = matrix.nrows();
        let (vectors, images) = (Mat::zeros(n, largest), Mat::zeros(n, largest));
        Self { matrix, vectors, images, projected: Mat::zeros(largest, largest), len: 0 }
    }

    /// Adds orthonormal vectors that are orthogonal to all others.
    fn expand(&mut self, block: &Mat<f64>) {
        let (start, end) = (self.len, self.len + block.ncols());
        self.vectors.as_mut().subcols_mut(start, block.ncols()).copy_from(block);
        self.images.as_mut().subcols_mut(start, block.ncols()).copy_from(product(self.matrix, block.as_ref()));
        self.len = end;
        let columns = inner(self.vectors.subcols(0, end), self.images.subcols(start, end - start));
        for (j, i) in (0..end - start).flat_map(|j| (0..=start + j).map(move |i| (j, i))) {
            self.projected[(i, start + j)] = columns[(i, j)];
            self.projected[(start + j, i)] = columns[(i, j)];
        }
    }

    /// The directions of `block` that the basis lacks, as orthonormal vectors; random ones in place of those that it does not
    /// lack: it then holds an invariant subspace. None if no such vectors are found, as with NaN.
    fn orthonormal(&self, mut block: Mat<f64>, rng: &mut CounterRng) -> Option<Mat<f64>> {
        let vectors = self.vectors.subcols(0, self.len);
        for pass in 0..MAX_PASSES {
            let coefficients = inner(vectors, block.as_ref());
            block -= product(vectors, coefficients.as_ref());
            let least = orthonormalize(&mut block, rng)?;
            if pass > 0 && least >= ORTHOGONAL {
                return Some(block);
            }
        }
        None
    }

    /// The eigenpairs of the projected matrix, the `kept` largest, as coefficients of the basis.
    fn ritz(&self, kept: usize) -> Option<Eigenpairs> {
        let eigen = self.projected.submatrix(0, 0, self.len, self.len).self_adjoint_eigen(Side::Lower).ok()?;
        let ascending = eigen.S().column_vector();
        let values = (0..kept).map(|at| ascending[self.len - 1 - at]).collect();
        let vectors = Mat::from_fn(self.len, kept, |i, j| eigen.U()[(i, self.len - 1 - j)]);
        Some(Eigenpairs { values, vectors })
    }

    /// Whether the first `count` pairs are eigenpairs of the matrix.
    fn holds(&self, ritz: &Eigenpairs, count: usize) -> bool {
        let coefficients = ritz.vectors.subcols(0, count);
        let images = product(self.images.subcols(0, self.len), coefficients);
        let vectors = product(self.vectors.subcols(0, self.len), coefficients);
        let residual = |at: usize| (images.col(at) - vectors.col(at) * Scale(ritz.values[at])).norm_l2();
        (0..count).all(|at| residual(at) <= TOLERANCE * ritz.values[0].abs())
    }

    /// Keeps the vectors of these pairs alone.
    fn restart(&mut self, ritz: &Eigenpairs) {
        let (before, kept) = (self.len, ritz.values.len());
        for matrix in [&mut self.vectors, &mut self.images] {
            let rotated = product(matrix.subcols(0, before), ritz.vectors.as_ref());
            matrix.as_mut().subcols_mut(0, kept).copy_from(rotated);
        }
        self.projected.fill(0.0);
        ritz.values.iter().enumerate().for_each(|(at, value)| self.projected[(at, at)] = *value);
        self.len = kept;
    }
}

/// Makes the columns of `block` orthonormal by the eigenvectors of their Gram matrix (Stathopoulos and Wu, "A block
/// orthogonalization procedure with constant synchronization requirements", 2002). Columns that depend on others become
/// random. Returns how orthonormal the columns were: the least eigenvalue of their Gram matrix, or the least squared length.
/// None with values that are not finite.
fn orthonormalize(block: &mut Mat<f64>, rng: &mut CounterRng) -> Option<f64> {
    let (n, width) = (block.nrows(), block.ncols());
    let lengths: Vec<f64> = (0..width).map(|at| block.col(at).norm_l2()).collect();
    for (at, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0.0) {
        block.col_mut(at).iter_mut().for_each(|value| *value /= length);
    }
    let gram = inner(block.as_ref(), block.as_ref());
    let eigen = gram.self_adjoint_eigen(Side::Lower).ok()?;
    let values = eigen.S().column_vector();
    let scales = Mat::from_fn(width, width, |i, j| match values[j] > DEPENDENT {
        true => eigen.U()[(i, j)] / values[j].sqrt(),
        false => 0.0,
    });
    *block = product(block.as_ref(), scales.as_ref());
    for at in (0..width).filter(|at| values[*at] <= DEPENDENT) {
        let fresh = random(n, 1, rng);
        let length = fresh.norm_l2();
        block.col_mut(at).iter_mut().zip(fresh.col(0).iter()).for_each(|(to, value)| *to = value / length);
    }
    let shortest = lengths.iter().fold(f64::INFINITY, |least, length| least.min(length * length));
    let least = values.iter().fold(shortest, |least, value| least.min(*value));
    (0..width).all(|at| block.col(at).norm_l2().is_finite()).then_some(least)
}

/// Values in [-1, 1).
fn random(rows: usize, columns: usize, rng: &mut CounterRng) -> Mat<f64> {
    Mat::from_fn(rows, columns, |_, _| 2.0 * rng.uniform_f64() - 1.0)
}

/// `left right`, where `left` has many rows, some of them at a time.
fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let rows = |start: usize| left.subrows(start, CHUNK.min(left.nrows() - start));
    let starts: Vec<usize> = (0..left.nrows()).step_by(CHUNK).collect();
    let part = |start: &usize| {
        let mut part = Mat::zeros(rows(*start).nrows(), right.ncols());
        matmul(&mut part, Accum::Replace, rows(*start), right, 1.0, Par::Seq);
        part
    };
    let parts: Vec<Mat<f64>> = starts.par_iter().map(part).collect();
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    for (start, part) in starts.into_iter().zip(parts) {
        product.as_mut().subrows_mut(start, part.nrows()).copy_from(part);
    }
    product
}

/// `left' right`, where both have many rows.
fn inner(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    product(left.transpose(), right)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    const N: usize = 600;
    const COUNT: usize = 10;

    /// The eigenvalue at each index.
    type Spectrum<'a> = &'a dyn Fn(usize) -> f64;

    /// The symmetric matrix with these eigenvalues, whose eigenvectors are columns of a product of three reflections.
    fn with_spectrum(values: impl Fn(usize) -> f64) -> Mat<f64> {
        let mut rng = CounterRng::seeded(5, 0);
        let mut matrix = Mat::from_fn(N, N, |i, j| if i == j { values(i) } else { 0.0 });
        for _ in 0..3 {
            let mut normal = random(N, 1, &mut rng);
            let length = normal.norm_l2();
            normal *= Scale(1.0 / length);
            let reflection = Mat::from_fn(N, N, |i, j| f64::from(i == j) - 2.0 * normal[(i, 0)] * normal[(j, 0)]);
            matrix = &reflection * &matrix * &reflection;
        }
        Mat::from_fn(N, N, |i, j| 0.5 * (matrix[(i, j)] + matrix[(j, i)]))
    }

    fn of(pairs: &Eigenpairs) -> Mat<f64> {
        let scaled = Mat::from_fn(N, COUNT, |i, j| pairs.vectors[(i, j)] * pairs.values[j]);
        scaled * pairs.vectors.transpose()
    }

    /// The largest magnitude; a NaN is larger than any number.
    fn largest(matrix: &Mat<f64>) -> f64 {
        matrix.col_iter().flat_map(|column| column.iter().map(|value| value.abs())).max_by(f64::total_cmp).unwrap()
    }

    fn complete(matrix: &Mat<f64>) -> Eigenpairs {
        let eigen = matrix.self_adjoint_eigen(Side::Lower).unwrap();
        let values = (0..COUNT).map(|at| eigen.S().column_vector()[N - 1 - at]).collect();
        Eigenpairs { values, vectors: Mat::from_fn(N, COUNT, |i, j| eigen.U()[(i, N - 1 - j)]) }
    }

    /// The largest difference from the complete decomposition, of values and of the matrix that the pairs make up, which
    /// does not depend on the vectors chosen for equal values. Relative to the largest value.
    fn apart(values: impl Fn(usize) -> f64) -> f64 {
        let matrix = with_spectrum(values);
        let (found, expected) = (leading_eigenpairs(matrix.as_ref(), COUNT).unwrap(), complete(&matrix));
        let unit = expected.values[0].abs().max(f64::MIN_POSITIVE);
        let of_values = found.values.iter().zip(&expected.values).map(|(x, y)| (x - y).abs());
        of_values.chain([largest(&(of(&found) - of(&expected)))]).max_by(f64::total_cmp).unwrap() / unit
    }

    #[test]
    fn the_pairs_are_those_of_the_complete_decomposition() {
        let steps = |at: usize| -> f64 { [1.0, 1.0, 0.7, 0.7, 0.7, 0.4][at.min(5)] };
        let spectra: [(&str, Spectrum<'_>); 9] = [
            ("decaying", &|at| 0.9f64.powi(at as i32)),
            ("even", &|at| 1.0 - at as f64 / N as f64),
            ("one far above the others", &|at| if at == 0 { 1e4 } else { 1.0 - 1e-3 * at as f64 }),
            ("a few equal, others equal", &|at| if at < COUNT { 1.0 } else { 0.5 }),
            ("groups of equal ones", &|at| if at < COUNT { steps(at) } else { 0.2 }),
            ("groups of nearly equal ones", &|at| (1.0 - 0.05 * (at / 5) as f64 - 1e-9 * (at % 5) as f64).max(0.0)),
            ("fewer than asked for", &|at| if at < 4 { 1.0 + at as f64 } else { 0.0 }),
            ("small ones", &|at| 1e-30 * 0.95f64.powi(at as i32)),
            ("rounding below zero", &|at| if at < 20 { 1.0 / (1 + at) as f64 } else { -1e-15 }),
        ];
        for (name, spectrum) in spectra {
            let apart = apart(spectrum);
            assert!(apart < 1e-9, "{name}: {apart}");
        }
    }

    #[test]
    fn of_more_equal_values_than_asked_for_any_vectors_are_found() {
        let spectra: [(&str, f64, Spectrum<'_>); 3] = [
            ("all equal", 1.0, &|_| 1.0),
            ("more than a block", 0.9, &|at| if at < 30 { 0.9 } else { 0.3 }),
            ("all zero", 0.0, &|_| 0.0),
        ];
        for (name, expected, spectrum) in spectra {
            let matrix = with_spectrum(spectrum);
            let Eigenpairs { values, vectors } = leading_eigenpairs(matrix.as_ref(), COUNT).unwrap();
            assert!(values.iter().all(|value| (value - expected).abs() < 1e-12), "{name}: {values:?}");
            let residual = largest(&(&matrix * &vectors - &vectors * Scale(expected)));
            let orthonormal = largest(&(vectors.transpose() * &vectors - Mat::<f64>::identity(COUNT, COUNT)));
            assert!(residual < 1e-12 && orthonormal < 1e-12, "{name}: {residual} {orthonormal}");
        }
    }

    #[test]
    fn many_nearly_equal_values_are_found() {
        let matrix = with_spectrum(|at| 1.0 - 1e-6 * at.min(300) as f64);
        let (found, expected) = (leading_eigenpairs(matrix.as_ref(), COUNT).unwrap(), complete(&matrix));
        for (found, expected) in found.values.iter().zip(expected.values) {
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }

    #[test]
    fn values_that_are_not_finite_are_no_endless_loop() {
        let mut matrix = with_spectrum(|at| 1.0 / (1 + at) as f64);
        matrix[(3, 3)] = f64::NAN;
        assert!(leading_eigenpairs(matrix.as_ref(), COUNT).is_none());
    }

    #[test]
    fn the_result_does_not_depend_on_the_number_of_threads() {
        let matrix = with_spectrum(|at| 1.0 - at as f64 / N as f64);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| leading_eigenpairs(matrix.as_ref(), COUNT)).unwrap();
            (found.values, found.vectors)
        };
        assert_eq!(with(1), with(3));
    }
}
