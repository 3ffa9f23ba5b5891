//! The low-rank update of one module, `delta = s B A`, and its algebra without ever forming delta.
//!
//! `A` is `[r, in]`, `B` is `[out, r]` and `s` is the scale (LoRA, <https://arxiv.org/abs/2106.09685>). Inner products,
//! norms and singular vectors come from r x r problems in f64. They depend on the product `s B A` alone: the pair
//! `(B R^-1, R A)` of any invertible `R` gives the same results.

use crate::error::{AdapterError, Result};
use crate::matrix::Matrix;

/// One module's update `s B A`, with `A` of shape `[r, in]` and `B` of shape `[out, r]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    a: Matrix,
    b: Matrix,
    scale: f64,
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
