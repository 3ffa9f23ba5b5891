//! The low-rank update of one module, `delta = s B A`, and its algebra without ever forming delta.
//!
//! `A` is `[r, in]`, `B` is `[out, r]` and `s` is the scale (LoRA, <https://arxiv.org/abs/2106.09685>). Inner products,
//! norms and singular vectors come from r x r problems in f64. They depend on the product `s B A` alone: the pair
//! `(B R^-1, R A)` of any invertible `R` gives the same results.

use faer::linalg::matmul::matmul;
use faer::{Accum, Col, Mat, MatRef, Par, Scale, Side};

use crate::error::{AdapterError, Result};
use crate::factor_gram::{gram_of_columns, gram_of_rows};
use crate::matrix::Matrix;

/// One module's update `s B A`, with `A` of shape `[r, in]` and `B` of shape `[out, r]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    a: Matrix,
    b: Matrix,
    scale: f64,
}

/// A right singular vector of an update: a unit vector of the module's input space.
#[derive(Clone, Debug, PartialEq)]
pub struct SingularVector {
    /// The unit vector `v`, of shape `[in]`. A singular vector's sign is arbitrary; here the entry of largest magnitude is
    /// positive.
    pub vector: Vec<f32>,
    /// Its singular value, `|s B A v|`.
    pub singular_value: f64,
}

impl LowRank {
    /// The update `scale * b * a`, of `a: [r, in]` and `b: [out, r]`.
    ///
    /// # Errors
    /// If the ranks differ, a dimension is zero, or the scale is not finite.
    pub fn new(a: Matrix, b: Matrix, scale: f64) -> Result<Self> {
        let ([a_rows, a_cols], [b_rows, b_cols]) = ([a.rows(), a.cols()], [b.rows(), b.cols()]);
        if a_rows != b_cols {
            return Err(AdapterError::Shape(format!(
                "A is [{a_rows}, {a_cols}] and B is [{b_rows}, {b_cols}]: expected as many rows in A as columns in B, the \
                 rank"
            )));
        }
        if a_rows == 0 || a_cols == 0 || b_rows == 0 {
            return Err(AdapterError::Shape(format!(
                "rank, input and output must be positive; found rank {a_rows}, input {a_cols}, output {b_rows}"
            )));
        }
        if !scale.is_finite() {
            return Err(AdapterError::Scale(scale));
        }
        Ok(Self { a, b, scale })
    }

    /// `A`, of shape `[r, in]`.
    pub fn a(&self) -> &Matrix {
        &self.a
    }

    /// `B`, of shape `[out, r]`.
    pub fn b(&self) -> &Matrix {
        &self.b
    }

    /// The factor `s` of `s B A`: `alpha / r`, or `alpha / sqrt(r)` under rsLoRA.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// The rank `r`.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// The width of the module's input.
    pub fn input(&self) -> usize {
        self.a.cols()
    }

    /// The width of the module's output.
    pub fn output(&self) -> usize {
        self.b.rows()
    }

    /// The number of values in `A` and `B`.
    pub fn parameters(&self) -> usize {
        self.rank() * (self.input() + self.output())
    }

    /// The same update times `factor`, sharing its matrices.
    pub fn scaled(&self, factor: f64) -> Self {
        Self { scale: self.scale * factor, ..self.clone() }
    }

    /// The Frobenius inner product of two updates of one module, of any ranks:
    /// `<s1 B1 A1, s2 B2 A2> = s1 s2 sum((B1' B2) * (A1 A2'))`, elementwise over r1 x r2.
    ///
    /// # Errors
    /// If their shapes `[out, in]` differ.
    pub fn dot(&self, other: &Self) -> Result<f64> {
        let [shape, other_shape] = [self, other].map(|update| (update.input(), update.output()));
        if shape != other_shape {
            let ((input, output), (other_input, other_output)) = (shape, other_shape);
            return Err(AdapterError::Shape(format!(
                "updates of different modules: input {input} and output {output}, but input {other_input} and output \
                 {other_output}"
            )));
        }
        Ok(self.inner_product(other))
    }

    /// The Frobenius norm of the update.
    pub fn norm(&self) -> f64 {
        // Rounding can leave a tiny negative sum where B A cancels.
        self.inner_product(self).max(0.0).sqrt()
    }

    /// The cosine of two updates of one module; 0 where either is zero.
    ///
    /// # Errors
    /// If their shapes `[out, in]` differ.
    pub fn cosine(&self, other: &Self) -> Result<f64> {
        Ok(cosine(self.dot(other)?, self.norm(), other.norm()))
    }

    /// The top right singular vector of `s B A`, exactly: the input direction that the update amplifies most. This is
    /// Arrow's prototype (<https://arxiv.org/abs/2405.11157>). `None` where the update is zero up to the rounding of its
    /// factors: what is left then is noise.
    pub fn top_singular_vector(&self) -> Option<SingularVector> {
        let by_qr = || top_by_qr(&transposed_f64(&self.a), &transposed_f64(&self.b));
        let (vector, top) = top_by_gram_matrices(&self.a, &self.b).or_else(by_qr)?;
        let singular_value = self.scale.abs() * top;
        (singular_value != 0.0).then(|| SingularVector { vector: oriented(&vector), singular_value })
    }

    /// The dense update `s B A` of shape `[out, in]`, row by row. For tests and small modules.
    pub fn delta(&self) -> Vec<f32> {
        let (a, b) = (self.a.values(), self.b.values());
        let mut delta = Vec::with_capacity(self.output() * self.input());
        for b_row in b.chunks_exact(self.rank()) {
            let mut row = vec![0f64; self.input()];
            for (weight, a_row) in b_row.iter().zip(a.chunks_exact(self.input())) {
                let weight = self.scale * f64::from(*weight);
                row.iter_mut().zip(a_row).for_each(|(sum, value)| *sum += weight * f64::from(*value));
            }
            delta.extend(row.into_iter().map(|value| value as f32));
        }
        delta
    }

    /// `dot` of two updates whose shapes agree.
    fn inner_product(&self, other: &Self) -> f64 {
        let a = self.row_products(other);
        let b = self.column_products(other);
        let sum: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
        self.scale * other.scale * sum
    }

    /// `A1 A2'`, of shape `[r1, r2]`.
    fn row_products(&self, other: &Self) -> Vec<f64> {
        let (mine, theirs) = (self.a.values(), other.a.values());
        mine.chunks_exact(self.input()).flat_map(|x| theirs.chunks_exact(self.input()).map(|y| dot_f64(x, y))).collect()
    }

    /// `B1' B2`, of shape `[r1, r2]`.
    fn column_products(&self, other: &Self) -> Vec<f64> {
        let (mine, theirs) = (self.b.values(), other.b.values());
        let mut products = vec![0f64; self.rank() * other.rank()];
        for (x, y) in mine.chunks_exact(self.rank()).zip(theirs.chunks_exact(other.rank())) {
            for (row, x) in products.chunks_exact_mut(other.rank()).zip(x) {
                row.iter_mut().zip(y).for_each(|(sum, y)| *sum += f64::from(*x) * f64::from(*y));
            }
        }
        products
    }
}

/// `dot / (norm1 norm2)`, and 0 where a norm is 0: a zero update is similar to nothing.
pub(crate) fn cosine(dot: f64, norm: f64, other_norm: f64) -> f64 {
    if norm == 0.0 || other_norm == 0.0 { 0.0 } else { dot / norm / other_norm }
}

/// The inner product of two f32 rows in f64, in eight interleaved sums, which the compiler vectorizes, in a fixed order.
fn dot_f64(x: &[f32], y: &[f32]) -> f64 {
    const LANES: usize = 8;
    let (x, x_rest) = x.as_chunks::<LANES>();
    let (y, y_rest) = y.as_chunks::<LANES>();
    let mut sums = [0f64; LANES];
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            sums[lane] += f64::from(x[lane]) * f64::from(y[lane]);
        }
    }
    let rest: f64 = x_rest.iter().zip(y_rest).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
    sums.iter().sum::<f64>() + rest
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

/// Where the top squared singular value is a smaller share of `|A|^2 |B|^2` than this, Gram matrices, which square it, have
/// lost too many digits.
const GRAM_SHARE: f64 = 1e-6;

/// The top right singular vector of `B A` and its singular value, from the Gram matrices of the factors alone: where
/// `B'B = L L'` and `z` is the top eigenvector of `L' A A' L`, it is `A' L z`.
///
/// None where `B'B` is singular, or the result would not be exact to f32 ([`GRAM_SHARE`]).
fn top_by_gram_matrices(a: &Matrix, b: &Matrix) -> Option<(Col<f64>, f64)> {
    let (gram_a, gram_b) = (gram_of_rows(a), gram_of_columns(b));
    let cholesky = gram_b.llt(Side::Lower).ok()?;
    let lower = cholesky.L();
    let core = product(lower.transpose(), product(gram_a.as_ref(), lower).as_ref());
    let eigen = core.self_adjoint_eigen(Side::Lower).ok()?;
    // Eigenvalues ascend.
    let last = core.nrows() - 1;
    let square = eigen.S().column_vector()[last];
    let trace = |gram: &Mat<f64>| gram.diagonal().column_vector().sum();
    if square.is_nan() || square <= GRAM_SHARE * trace(&gram_a) * trace(&gram_b) {
        return None;
    }
    let weights = product(lower, eigen.U().subcols(last, 1));
    let top = square.sqrt();
    let vector = product(transposed_f64(a).as_ref(), weights.as_ref());
    Some((vector.col(0) * Scale(top.recip()), top))
}

/// The same for any factors, given `A'` `[in, r]` and `B'` `[r, out]`, by the thin QR factorizations `A' = Qa Ra` and
/// `B = Qb Rb`: it is `Qa w`, where `w` is the top right singular vector of the r x r core `Rb Ra'`. None where all of
/// the core is rounding.
fn top_by_qr(a: &Mat<f64>, b: &Mat<f64>) -> Option<(Col<f64>, f64)> {
    let (qr_a, qr_b) = (a.qr(), b.transpose().qr());
    let core = qr_b.thin_R() * qr_a.thin_R().transpose();
    let svd = core.thin_svd().ok()?;
    let top = svd.S().column_vector()[0];
    let rounding = a.ncols() as f64 * f64::EPSILON * a.norm_l2() * b.norm_l2();
    (top > rounding).then(|| (qr_a.compute_thin_Q() * svd.V().col(0), top))
}

/// The product of two small matrices. It starts no threads: many updates are worked on at once.
fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Mat<f64> {
    let mut product = Mat::zeros(left.nrows(), right.ncols());
    matmul(&mut product, Accum::Replace, left, right, 1.0, Par::Seq);
    product
}

/// The vector or its negative, whichever makes its entry of largest magnitude (the first of equals) positive.
fn oriented(vector: &Col<f64>) -> Vec<f32> {
    let largest = vector.iter().fold(0f64, |best, value| if value.abs() > best.abs() { *value } else { best });
    vector.iter().map(|value| (value * largest.signum()) as f32).collect()
}
