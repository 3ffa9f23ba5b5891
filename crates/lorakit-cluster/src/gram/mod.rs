//! Inner products of all pairs of experts, in bounded memory.

pub(crate) mod delta;
pub(crate) mod flat;
pub(crate) mod gram_matrix;
pub(crate) mod magnitude_threshold;
pub(crate) mod module_layout;
pub(crate) mod triangle;
