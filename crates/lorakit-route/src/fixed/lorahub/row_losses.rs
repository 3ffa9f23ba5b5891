//! What LoraHub's searches ask of a model, and what they find.

use crate::fixed::held_out::HeldOut;

/// Why a model cannot answer; [`crate::RouteError::Model`] carries it.
pub type LossError = Box<dyn std::error::Error + Send + Sync>;

/// The loss of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// The sum of the negative log-likelihoods of its target tokens.
    pub sum: f64,
    /// The number of these tokens.
    pub tokens: usize,
}

impl RowLoss {
    pub(super) fn mean(self) -> f64 {
        self.sum / self.tokens.max(1) as f64
    }
}

/// What the search asks of whoever has a model and rows.
pub trait RowLosses {
    /// For each candidate, which has one weight per expert, the loss of every row under
    /// [`crate::LoraHub::mixing`].
    ///
    /// # Errors
    /// If the model cannot say.
    fn losses(&mut self, candidates: &[Vec<f64>]) -> Result<Vec<Vec<RowLoss>>, LossError>;

    /// For every row, the slopes of its mean loss along each expert's weight, at the weights `at`; asked for only if
    /// outputs are mixed.
    ///
    /// # Errors
    /// If the model cannot say.
    fn slopes(&mut self, at: &[f64]) -> Result<Vec<Vec<f64>>, LossError>;
}

/// Weights with what is known of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// One for each expert.
    pub weights: Vec<f64>,
    /// The mean loss of the rows that the weights were fitted to: it says how well they fit, not how good they are.
    pub fitted: f64,
    /// The same with no expert.
    pub base: f64,
    /// The losses of rows that were left out of the fit.
    pub held_out: Option<HeldOut>,
    /// How often the rows were evaluated.
    pub evaluations: usize,
}
