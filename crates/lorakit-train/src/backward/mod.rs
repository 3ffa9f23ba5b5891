//! Losses of packed sequences and their gradients, one layer at a time.

pub mod backward_mode;
pub mod example_losses_by_token;
pub mod gradient_sinks;
pub mod gradients;
pub mod layerwise;
pub mod token_loss;
