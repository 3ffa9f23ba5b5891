//! The ops of low-rank adapters: their products over a packed batch, forward and backward.

mod composed_grouped;
mod factor_source;
mod grouped_lora;
mod grouped_lora_backward;
mod grouped_op;
mod lora_linear;
mod per_token_lora;
mod sparse_gradients;
mod token_group;
mod weighted_lora;

pub use grouped_lora::GroupedLora;
pub use lora_linear::{DropoutMask, LoraLinear};
pub use per_token_lora::PerTokenLora;
pub use sparse_gradients::{GradientSink, SparseGradients};
pub use token_group::{TokenGroup, TokenSelection};
pub use weighted_lora::WeightedLora;
