//! Weights of a library's experts, fitted to rows: LoraHub and CAT.

mod cat;
pub(crate) mod fit;
mod lorahub;
mod weights;

pub use fit::{WeightFit, fit_weights, rows};
pub use weights::FittedWeights;
