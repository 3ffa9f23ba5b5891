//! What was fitted for a router: matrices by name.

use crate::error::{Result, RouteError};
use lorakit_adapter::Matrix;
use std::collections::BTreeMap;

/// What was fitted for a router. Each router says in its file which matrices it has, and of what shape.
///
/// This crate neither fits it nor reads it from disk: the caller passes it in
/// [`crate::RouterContext`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouterState(BTreeMap<String, Matrix>);

impl RouterState {
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
    /// If it is missing or has another shape: the state belongs to another library.
    pub fn matrix(&self, name: &str, shape: (usize, usize)) -> Result<&Matrix> {
        let found = self.0.get(name);
        found.filter(|matrix| (matrix.rows(), matrix.cols()) == shape).ok_or_else(|| RouteError::StateMismatch {
            name: name.to_owned(),
            expected: shape,
            found: found.map(|matrix| (matrix.rows(), matrix.cols())),
        })
    }

    /// The values of a matrix, row by row; see [`RouterState::matrix`].
    pub(crate) fn values(&self, name: &str, shape: (usize, usize)) -> Result<Vec<f32>> {
        Ok(self.matrix(name, shape)?.values().into_owned())
    }
}
