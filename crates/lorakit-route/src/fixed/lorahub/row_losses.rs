//! The losses that LoraHub's searches need from a model, and their result.

use crate::fixed::held_out_losses::HeldOutLosses;

/// An error of the model, wrapped in [`crate::RouteError::Model`].
pub type LossError = Box<dyn std::error::Error + Send + Sync>;

/// The loss of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// The summed negative log-likelihood of its target tokens.
    pub sum: f64,
    /// The number of target tokens.
    pub tokens: usize,
}

impl RowLoss {
    pub(super) fn mean(self) -> f64 {
        self.sum / self.tokens.max(1) as f64
    }
}

/// Losses of rows under candidate weights, implemented by a caller that has a model.
pub trait RowLosses {
    /// The loss of every row for each candidate (one weight per expert) under
    /// [`crate::LoraHub::mixing`].
    ///
    /// # Errors
    /// If the model fails.
    fn losses(&mut self, candidates: &[Vec<f64>]) -> Result<Vec<Vec<RowLoss>>, LossError>;

    /// For every row, the derivatives of its mean loss with respect to each expert's weight, at the weights `at`;
    /// called only if outputs are mixed.
    ///
    /// # Errors
    /// If the model fails.
    fn gradients(&mut self, at: &[f64]) -> Result<Vec<Vec<f64>>, LossError>;
}

/// Fitted weights with their losses.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// One weight per expert.
    pub weights: Vec<f64>,
    /// The mean loss of the rows that the weights were fitted to: a measure of fit, not of quality.
    pub fitted: f64,
    /// The mean loss of these rows without experts.
    pub base: f64,
    /// The losses of held-out rows.
    pub held_out: Option<HeldOutLosses>,
    /// How often the rows were evaluated.
    pub evaluations: usize,
}
