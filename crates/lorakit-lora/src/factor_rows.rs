//! One expert's A or B for one projection as the rows that products read, where it lies or made of what lies there.

use lorakit_adapter::Matrix;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// The rows of an expert's A, `[rank, in]`, or of its transposed B, `[rank, width]`, in f32.
///
/// Rows that lie so in memory or in a mapped file are read there; others are made when they are first read, and kept.
#[derive(Debug)]
pub struct FactorRows {
    matrix: Matrix,
    transposed: bool,
    made: OnceLock<Vec<f32>>,
}

impl FactorRows {
    /// The rows of a matrix.
    pub fn of(matrix: Matrix) -> Self {
        Self { matrix, transposed: false, made: OnceLock::new() }
    }

    /// The rows of a matrix's transpose.
    pub fn transposed(matrix: Matrix) -> Self {
        // A single column is its own transpose.
        Self { transposed: matrix.cols() > 1, ..Self::of(matrix) }
    }

    /// The matrix as it is stored.
    pub fn matrix(&self) -> &Matrix {
        &self.matrix
    }

    /// The values, row by row.
    pub fn values(&self) -> &[f32] {
        if let Some(made) = self.made.get() {
            return made;
        }
        match self.matrix.values() {
            values if self.transposed => self.made.get_or_init(|| transpose(&values, self.matrix.cols())),
            Cow::Owned(values) => self.made.get_or_init(|| values),
            Cow::Borrowed(values) => values,
        }
    }
}

/// The transpose of rows of `columns` values.
fn transpose(values: &[f32], columns: usize) -> Vec<f32> {
    let mut transposed = Vec::with_capacity(values.len());
    (0..columns).for_each(|column| transposed.extend(values[column..].iter().step_by(columns)));
    transposed
}

/// The low-rank product of one expert for one projection, in matrices of its own.
#[derive(Clone, Debug)]
pub struct ExpertFactors {
    /// A matrix that A is some rows of.
    pub a: Arc<FactorRows>,
    /// The rows of A, `[rank, in]`.
    pub rows: Range<usize>,
    /// The rows of the transposed B, `[rank, width]`.
    pub b: Arc<FactorRows>,
    /// The projection's columns in the site's output, as many as `width`.
    pub columns: Range<usize>,
    /// The scale `s`, as in alpha / r.
    pub scale: f32,
}

impl ExpertFactors {
    /// The rank.
    pub fn rank(&self) -> usize {
        self.rows.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_are_those_of_the_matrix_or_of_its_transpose() {
        let values = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let matrix = |rows, columns| Matrix::new(rows, columns, values.clone()).unwrap();
        assert_eq!(FactorRows::of(matrix(3, 2)).values(), values);
        assert_eq!(FactorRows::transposed(matrix(6, 1)).values(), values);
        let transposed = FactorRows::transposed(matrix(3, 2));
        let first = transposed.values();
        assert_eq!(first, [1.0, 3.0, 5.0, 2.0, 4.0, 6.0]);
        assert!(std::ptr::eq(first, transposed.values()), "made once");
    }

    #[test]
    fn rows_in_memory_are_not_copied() {
        let matrix = Matrix::new(2, 2, vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        let rows = FactorRows::of(matrix.clone());
        assert!(std::ptr::eq(rows.values(), &*matrix.values()));
    }
}
