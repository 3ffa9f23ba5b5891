//! Routers that choose experts for each token.

pub mod arrow;
pub mod arrow_norm;
pub mod centroid;
mod fitted_vectors;
pub mod general_knowledge;
pub mod input_means;
mod input_norm;
pub mod lag;
pub mod phatgoose;
pub mod prototypes;
pub mod random;
mod scorer;
pub mod spectr;
pub(crate) mod subspace_patches;
pub mod subspaces;
pub(crate) mod token_routing;
mod top_k;
