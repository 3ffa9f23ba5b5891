//! A matrix of one expert, whose rows are computed on demand.

use lorakit_adapter::{LowRank, Matrix};
use std::borrow::Cow;

/// A matrix to merge value by value. Deltas are not stored densely: their rows are computed when they are needed.
pub(super) enum RowSource<'a> {
    /// A stored matrix such as A or B, row-major.
    Single(Cow<'a, [f32]>, usize),
    /// A stored matrix in f64.
    Double(Vec<f64>, usize),
    /// `s B A`.
    Delta(&'a LowRank, Cow<'a, [f32]>, Cow<'a, [f32]>),
}

/// One matrix of each expert of a module, all of one shape.
pub(super) struct ExpertMatrices<'a> {
    /// What they are, as in `delta`: random masks are drawn by it.
    pub(super) name: &'static str,
    /// The matrices, in the order of the module's experts.
    pub(super) sources: Vec<RowSource<'a>>,
}

impl<'a> RowSource<'a> {
    pub(super) fn matrix(matrix: &'a Matrix) -> Self {
        Self::Single(matrix.values(), matrix.cols())
    }

    pub(super) fn delta(update: &'a LowRank) -> Self {
        Self::Delta(update, update.a().values(), update.b().values())
    }

    pub(super) fn columns(&self) -> usize {
        match self {
            Self::Single(_, columns) | Self::Double(_, columns) => *columns,
            Self::Delta(update, ..) => update.input(),
        }
    }

    pub(super) fn rows(&self) -> usize {
        match self {
            Self::Single(values, columns) => values.len() / columns,
            Self::Double(values, columns) => values.len() / columns,
            Self::Delta(update, ..) => update.output(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.rows() * self.columns()
    }

    /// Writes a row to `out`, which has its length.
    pub(super) fn row(&self, row: usize, out: &mut [f64]) {
        let span = row * self.columns()..(row + 1) * self.columns();
        match self {
            Self::Single(values, _) => {
                out.iter_mut().zip(&values[span]).for_each(|(out, value)| *out = f64::from(*value));
            }
            Self::Double(values, _) => out.copy_from_slice(&values[span]),
            Self::Delta(update, a, b) => {
                out.fill(0.0);
                let by = &b[row * update.rank()..(row + 1) * update.rank()];
                for (by, a) in by.iter().zip(a.chunks_exact(update.input())) {
                    let by = update.scale() * f64::from(*by);
                    out.iter_mut().zip(a).for_each(|(out, value)| *out += by * f64::from(*value));
                }
            }
        }
    }

    /// Calls `see` with each row and its index.
    pub(super) fn each_row(&self, mut see: impl FnMut(usize, &[f64])) {
        let mut buffer = vec![0f64; self.columns()];
        for row in 0..self.rows() {
            self.row(row, &mut buffer);
            see(row, &buffer);
        }
    }
}
