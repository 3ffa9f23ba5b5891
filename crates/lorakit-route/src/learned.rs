//! What a router had to learn, as it is kept: matrices by name.

use crate::error::{Result, RouteError};
use lorakit_adapter::Matrix;
use std::collections::BTreeMap;

/// What a router learned. Each router says in its file which matrices it has, and of what shape.
///
/// The crate does not learn it and does not read it from disk: whoever has a model and rows makes it, and hands it in
/// with [`crate::Setting`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Learned(BTreeMap<String, Matrix>);

impl Learned {
    /// These matrices.
    pub fn new(matrices: impl IntoIterator<Item = (String, Matrix)>) -> Self {
        Self(matrices.into_iter().collect())
    }

    /// The matrices by name, in order.
    pub fn matrices(&self) -> &BTreeMap<String, Matrix> {
        &self.0
    }

    /// The matrix of a name, of a shape that must be `(rows, columns)`.
    ///
    /// # Errors
    /// Where there is none, or it has another shape: what was learned belongs to another library.
    pub fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<&Matrix> {
        let found = self.0.get(name);
        found.filter(|matrix| (matrix.rows(), matrix.cols()) == shape).ok_or_else(|| RouteError::Learned {
            name: name.to_owned(),
            expected: shape,
            found: found.map(|matrix| (matrix.rows(), matrix.cols())),
        })
    }
}

/// Where a router that learns takes its rows from, unless the user gives others; `rows` of each task at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lesson {
    /// The tasks that each expert was trained on; each row belongs to its expert.
    Experts {
        /// Rows of each task.
        rows: usize,
    },
    /// The task at hand: what is learned serves that task alone.
    Task {
        /// Rows of the task.
        rows: usize,
    },
}

impl Lesson {
    /// Rows of each task at most.
    pub fn rows(self) -> usize {
        match self {
            Self::Experts { rows } | Self::Task { rows } => rows,
        }
    }
}
