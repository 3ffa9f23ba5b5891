//! How the sequences of one batch are laid out, for the attention of all layers.

use crate::attention::score_masks::ScoreMasks;
use crate::attention::segment::AttentionSegment;
use crate::layer::rope::RopeTable;
use std::sync::Arc;

/// What the attention of all layers to one batch shares.
#[derive(Clone, Debug)]
pub struct AttentionLayout {
    /// The rotation of every token.
    pub rope: RopeTable,
    /// The sequences.
    pub segments: Arc<[AttentionSegment]>,
    /// Masks and indices for devices without a kernel, made on first use.
    pub(crate) masks: ScoreMasks,
}

impl AttentionLayout {
    /// Sequences with the rotation of their tokens.
    pub fn new(rope: RopeTable, segments: Arc<[AttentionSegment]>) -> Self {
        Self { rope, segments, masks: ScoreMasks::default() }
    }
}
