//! What weights of experts are fitted over.

use lorakit_model::Base;
use lorakit_route::LibraryStack;

/// What weights are fitted over.
#[derive(Clone, Copy)]
pub struct WeightFitContext<'a> {
    /// The base.
    pub base: &'a Base,
    /// The experts that are weighted.
    pub experts: &'a LibraryStack,
    /// The seed of the order of rows.
    pub seed: u64,
}
