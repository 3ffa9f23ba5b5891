//! The progress of an expert in training.

use serde::{Deserialize, Serialize};

/// The progress of one expert, as checkpoints store it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertProgress {
    /// The training loss of every step.
    pub losses: Vec<f32>,
    /// The gradient norm of every step, before clipping.
    pub norms: Vec<f32>,
    /// Every validation loss, with the steps done before it.
    pub validation: Vec<(usize, f32)>,
    /// The validation of the best weights.
    pub best: Option<(usize, f32)>,
    /// Target tokens trained on.
    pub tokens: u64,
    /// Why the expert was stopped before its end.
    pub failure: Option<String>,
}
