//! Where the rows of one batch stand, for the attention of all layers.

use crate::masked_attention::Prepared;
use crate::rope::Angles;
use std::ops::Range;
use std::sync::Arc;

/// Where one row's queries and keys stand.
#[derive(Clone, Debug)]
pub struct Segment {
    /// The row's tokens among those of the batch.
    pub queries: Range<usize>,
    /// Where its keys stand, in order of position; the last key belongs to the last query.
    pub keys: Vec<Range<usize>>,
}

/// What all layers' attention to one batch shares.
#[derive(Clone, Debug)]
pub struct Packing {
    /// The angles of every token.
    pub angles: Angles,
    /// The rows.
    pub segments: Arc<[Segment]>,
    /// What there is of them on a device.
    pub(crate) prepared: Prepared,
}

impl Packing {
    /// Rows with the angles of their tokens.
    pub fn new(angles: Angles, segments: Arc<[Segment]>) -> Self {
        Self { angles, segments, prepared: Prepared::default() }
    }
}
