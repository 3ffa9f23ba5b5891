//! What the experts of a pass share.

use crate::train_config::TrainConfig;
use lorakit_model::Base;

/// What all experts of a pass share.
#[derive(Clone, Copy)]
pub struct PassContext<'a> {
    /// The base.
    pub base: &'a Base,
    /// How the experts are trained.
    pub config: &'a TrainConfig,
    /// The seed of initial values, row orders and dropout.
    pub seed: u64,
    /// Maximum tokens per forward.
    pub batch_tokens: usize,
}
