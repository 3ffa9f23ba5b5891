//! Losses of packed examples and their gradients, one layer at a time.

pub mod example_losses;
pub mod layerwise;
pub mod token_loss;
