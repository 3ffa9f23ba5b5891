//! Weights of a library's experts, fitted to rows: LoraHub and CAT.

pub(crate) mod cat;
pub(crate) mod fit_weights;
mod fitted_weights;
pub(crate) mod lorahub;
mod merge_fit;
pub(crate) mod weight_fit_context;
mod weights_as_state;

pub use fit_weights::{MERGE_FITS, fit_weights, rows};
pub use fitted_weights::FittedWeights;
pub use merge_fit::MergeFit;
pub use weight_fit_context::WeightFitContext;
