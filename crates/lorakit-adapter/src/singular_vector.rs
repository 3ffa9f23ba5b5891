//! The right singular vectors of an update `s B A`, from r x r problems in f64. The top one is Arrow's prototype
//! (<https://arxiv.org/abs/2405.11157>).

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Svd;
use faer::{Accum, Col, Mat, MatRef, Par, Side};
use pulp::{Arch, Simd, WithSimd};

use crate::factor_gram::gram_matrices;
use crate::low_rank::LowRank;
use crate::matrix::Matrix;

/// A right singular vector of an update: a unit vector of the module's input space.
#[derive(Clone, Debug, PartialEq)]
pub struct SingularVector {
    /// The unit vector `v`, of shape `[in]`. A singular vector's sign is arbitrary; here the entry of largest magnitude is
    /// positive.
    pub vector: Vec<f32>,
    /// Its singular value, `|s B A v|`.
    pub singular_value: f64,
}

/// The right singular vectors of an update: the directions of the module's input space that it reads.
#[derive(Clone, Debug, PartialEq)]
pub struct RightSingularVectors {
    /// Orthonormal vectors by rows, `[number, in]`, that of the largest singular value first. Signs are arbitrary.
    pub vectors: Vec<f32>,
    /// Their singular values, `|s B A v|`.
    pub singular_values: Vec<f64>,
}

/// Where the top squared singular value is a smaller share of `|A|^2 |B|^2` than this, Gram matrices, which square it, have
/// lost too many digits.
const GRAM_SHARE: f64 = 1e-6;

impl LowRank {
    /// The top right singular vector of `s B A`, exactly: the input direction that the update amplifies most. `None` where
    /// the update is zero up to the rounding of its factors: what is left then is noise.
    pub fn top_singular_vector(&self) -> Option<SingularVector> {
        let mut vector = vec![0.0; self.input()];
        let singular_value = self.write_top_singular_vector(&mut vector)?;
        Some(SingularVector { vector, singular_value })
    }

    /// Writes the vector of [`top_singular_vector`](Self::top_singular_vector) to `vector`, which has a place for each
    /// input, and returns its singular value. Where there is none, `vector` stays as it is.
    pub fn write_top_singular_vector(&self, vector: &mut [f32]) -> Option<f64> {
        let by_qr = || top_by_qr(&transposed_f64(self.a()), &transposed_f64(self.b()));
        let (direction, top) = top_by_gram_matrices(self.a(), self.b()).or_else(by_qr)?;
        let singular_value = self.scale().abs() * top;
        if singular_value == 0.0 {
            return None;
        }
        Arch::new().dispatch(Oriented { direction: &direction, to: vector });
        Some(singular_value)
    }

    /// All right singular vectors of `s B A` whose singular values are more than the rounding of f32 factors; `None` exactly
    /// where there is no [`top_singular_vector`](Self::top_singular_vector).
    pub fn right_singular_vectors(&self) -> Option<RightSingularVectors> {
        let by_qr = || all_by_qr(&transposed_f64(self.a()), &transposed_f64(self.b()));
        let found = all_by_gram_matrices(self.a(), self.b()).or_else(by_qr)?;
        let scale = self.scale().abs();
        let mut all =
            RightSingularVectors { vectors: Vec::with_capacity(found.len() * self.input()), singular_values: vec![] };
        for (vector, value) in found {
            all.vectors.extend(vector.into_iter().map(|value| value as f32));
            all.singular_values.push(scale * value);
        }
        (all.singular_values.first() > Some(&0.0)).then_some(all)
    }
}

/// The top right singular vector of `B A` and its singular value, from the Gram matrices of the factors alone; see
/// [`CoreEigen`]. None where the result would not be exact to f32.
fn top_by_gram_matrices(a: &Matrix, b: &Matrix) -> Option<(Vec<f64>, f64)> {
    let core = CoreEigen::of(a, b)?;
    core.vector(a, core.squares.len() - 1)
}

/// The same of all right singular vectors, the largest singular value first. None if one of them would not be exact.
fn all_by_gram_matrices(a: &Matrix, b: &Matrix) -> Option<Vec<(Vec<f64>, f64)>> {
    let core = CoreEigen::of(a, b)?;
    (0..core.squares.len()).rev().map(|index| core.vector(a, index)).collect()
}

/// The eigenvectors `z` of `L' A A' L`, where `B'B = L L'`: `A' L z` is a right singular vector of `B A`, times its
/// singular value, the root of the eigenvalue.
struct CoreEigen {
    /// The eigenvalues, ascending.
    squares: Vec<f64>,
    /// `z` by columns.
    vectors: Mat<f64>,
    lower: Mat<f64>,
    /// Eigenvalues up to this have lost too many digits ([`GRAM_SHARE`]).
    inexact: f64,
}

impl CoreEigen {
    /// None where `B'B` is singular.
    fn of(a: &Matrix, b: &Matrix) -> Option<Self> {
        let [gram_a, gram_b] = gram_matrices(a, b);
        let cholesky = gram_b.llt(Side::Lower).ok()?;
        let lower = cholesky.L();
        let core = product(lower.transpose(), product(gram_a.as_ref(), lower).as_ref());
        let eigen = core.self_adjoint_eigen(Side::Lower).ok()?;
        let trace = |gram: &Mat<f64>| gram.diagonal().column_vector().sum();
        Some(Self {
            squares: eigen.S().column_vector().iter().copied().collect(),
            vectors: eigen.U().to_owned(),
            lower: lower.to_owned(),
            inexact: GRAM_SHARE * trace(&gram_a) * trace(&gram_b),
        })
    }

    /// The right singular vector of an eigenvalue, and its singular value.
    fn vector(&self, a: &Matrix, index: usize) -> Option<(Vec<f64>, f64)> {
        let square = self.squares[index];
        if square.is_nan() || square <= self.inexact {
            return None;
        }
        let (weights, value) = (product(self.lower.as_ref(), self.vectors.subcols(index, 1)), square.sqrt());
        let (rows, weights) = (&a.values(), weights.col_as_slice(0));
        let rows = WeightedRows { rows, columns: a.cols(), weights, factor: value.recip() };
        Some((Arch::new().dispatch(rows), value))
    }
}

/// The same for any factors, given `A'` `[in, r]` and `B'` `[r, out]`; see [`core_svd`].
fn top_by_qr(a: &Mat<f64>, b: &Mat<f64>) -> Option<(Vec<f64>, f64)> {
    let (q, svd) = core_svd(a, b)?;
    let vector = |by: Col<f64>| by.iter().copied().collect();
    Some((vector(q * svd.V().col(0)), svd.S().column_vector()[0]))
}

/// The same of all whose singular values are more than the rounding of f32 beside the largest.
fn all_by_qr(a: &Mat<f64>, b: &Mat<f64>) -> Option<Vec<(Vec<f64>, f64)>> {
    let (q, svd) = core_svd(a, b)?;
    let values: Vec<f64> = svd.S().column_vector().iter().copied().collect();
    let rounding = a.ncols() as f64 * f64::from(f32::EPSILON) * values[0];
    let kept = values.into_iter().take_while(|value| *value > rounding).enumerate();
    Some(kept.map(|(index, value)| ((&q * svd.V().col(index)).iter().copied().collect(), value)).collect())
}

/// By the thin QR factorizations `A' = Qa Ra` and `B = Qb Rb`, `Qa` and the SVD of the r x r core `Rb Ra'`: `Qa w` is a
/// right singular vector of `B A` for each `w` of the core. None where all of the core is rounding.
fn core_svd(a: &Mat<f64>, b: &Mat<f64>) -> Option<(Mat<f64>, Svd<f64>)> {
    let (qr_a, qr_b) = (a.qr(), b.transpose().qr());
    let core = qr_b.thin_R() * qr_a.thin_R().transpose();
    let svd = core.thin_svd().ok()?;
    let rounding = a.ncols() as f64 * f64::EPSILON * a.norm_l2() * b.norm_l2();
    (svd.S().column_vector()[0] > rounding).then(|| (qr_a.compute_thin_Q(), svd))
}

/// The transpose in f64, `[cols, rows]`: a row of the matrix is a column, so that it is copied as it lies.
fn transposed_f64(matrix: &Matrix) -> Mat<f64> {
    let values = matrix.values();
    let mut transposed = Mat::zeros(matrix.cols(), matrix.rows());
    for (index, row) in values.chunks_exact(matrix.cols()).enumerate() {
        let column = transposed.col_as_slice_mut(index);
        column.iter_mut().zip(row).for_each(|(to, value)| *to = f64::from(*value));
    }
    transposed
}

/// The product of two small matrices. It starts no threads: many updates are worked on at once.
fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    matmul(&mut product, Accum::Replace, left, right, 1.0, Par::Seq);
    product
}

/// Columns whose sums are made at once: whole vectors of any width.
const BLOCK: usize = 32;

/// The sum of rows of `columns` values, each row times its weight, times `factor`, in f64.
///
/// The rows are converted as they are read, where a product of matrices would need them in f64 and column by column.
struct WeightedRows<'a> {
    rows: &'a [f32],
    columns: usize,
    weights: &'a [f64],
    factor: f64,
}

impl WithSimd for WeightedRows<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let mut sums = vec![0.0; self.columns.next_multiple_of(BLOCK)];
        for (block, sums) in sums.chunks_exact_mut(BLOCK).enumerate() {
            let (vectors, _) = S::as_mut_simd_f64s(sums);
            for (row, weight) in self.rows.chunks_exact(self.columns).zip(self.weights) {
                let (values, weight) = (in_f64(&row[block * BLOCK..]), simd.splat_f64s(*weight));
                let (values, _) = S::as_simd_f64s(&values);
                let add = |(sum, value): (&mut S::f64s, &S::f64s)| *sum = simd.mul_add_e_f64s(*value, weight, *sum);
                vectors.iter_mut().zip(values).for_each(add);
            }
            sums.iter_mut().for_each(|sum| *sum *= self.factor);
        }
        sums.truncate(self.columns);
        sums
    }
}

/// The next values in f64; zeros where there are no more.
#[inline(always)]
fn in_f64(values: &[f32]) -> [f64; BLOCK] {
    if let Some(values) = values.first_chunk::<BLOCK>() {
        return values.map(f64::from);
    }
    let mut last = [0.0; BLOCK];
    last.iter_mut().zip(values).for_each(|(to, value)| *to = f64::from(*value));
    last
}

/// Writes a direction or its negative, whichever makes its entry of largest magnitude (the first of equals) positive.
struct Oriented<'a> {
    direction: &'a [f64],
    to: &'a mut [f32],
}

impl WithSimd for Oriented<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let mut largest = [0f64; BLOCK];
        let larger = |largest: &mut f64, value: f64| *largest = if value > *largest { value } else { *largest };
        let (blocks, rest) = self.direction.as_chunks::<BLOCK>();
        for block in blocks {
            largest.iter_mut().zip(block).for_each(|(largest, value)| larger(largest, value.abs()));
        }
        largest.iter_mut().zip(rest).for_each(|(largest, value)| larger(largest, value.abs()));
        let magnitude = largest.into_iter().fold(0.0, |best, value| if value > best { value } else { best });
        let first = self.direction.iter().find(|value| value.abs() == magnitude);
        let sign = first.map_or(1.0, |value| value.signum());
        self.to.iter_mut().zip(self.direction).for_each(|(to, value)| *to = (value * sign) as f32);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * 0.37).sin() * 0.02).collect()
    }

    /// Lengths that blocks do not divide.
    #[test]
    fn a_sum_of_rows_is_a_matrix_product_to_the_last_bit() {
        for (rank, columns) in [(1, 1), (1, 40), (3, 31), (4, 32), (4, 576), (9, 100)] {
            let matrix = Matrix::new(rank, columns, values(rank * columns)).unwrap();
            let weights = Mat::from_fn(rank, 1, |row, _| 0.3 - 0.7 * row as f64);
            let expected = product(transposed_f64(&matrix).as_ref(), weights.as_ref());
            let weights = weights.col_as_slice(0);
            let rows = WeightedRows { rows: &matrix.values(), columns, weights, factor: 1.25 };
            let found: Vec<u64> = Arch::new().dispatch(rows).into_iter().map(f64::to_bits).collect();
            let expected: Vec<u64> = (0..columns).map(|column| (expected[(column, 0)] * 1.25).to_bits()).collect();
            assert_eq!(found, expected, "{rank} {columns}");
        }
    }

    #[test]
    fn the_first_entry_of_largest_magnitude_becomes_positive() {
        let written = |direction: &[f64]| {
            let mut to = vec![7.0; direction.len()];
            Arch::new().dispatch(Oriented { direction, to: &mut to });
            to
        };
        assert_eq!(written(&[0.25, -1.0, 1.0, 0.5]), [-0.25, 1.0, -1.0, -0.5]);
        assert_eq!(written(&[0.25, 1.0, -1.0, 0.5]), [0.25, 1.0, -1.0, 0.5]);
        let mut long = vec![0.5; 100];
        (long[97], long[70]) = (2.0, -2.0);
        assert_eq!([written(&long)[97], written(&long)[70], written(&long)[0]], [-2.0, 2.0, -0.5]);
    }
}
