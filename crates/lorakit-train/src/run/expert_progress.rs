//! How far the experts of a pass are.

use serde::{Deserialize, Serialize};

/// How far one expert is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertProgress {
    /// The training loss of every update.
    pub losses: Vec<f32>,
    /// The gradient's norm, before clipping, of every update.
    pub norms: Vec<f32>,
    /// Updates done and the validation loss after them.
    pub validation: Vec<(usize, f32)>,
    /// The validation that the best weights are of.
    pub best: Option<(usize, f32)>,
    /// Target tokens that carried loss.
    pub tokens: u64,
    /// Why it was stopped before its end.
    pub failure: Option<String>,
}
