//! Where one sequence's queries and keys stand.

use crate::attention::heads::AttentionHeads;
use std::ops::Range;

/// One sequence of a batch: which tokens ask, and which keys they may see.
#[derive(Clone, Debug)]
pub struct AttentionSegment {
    /// The sequence's tokens among those of the batch.
    pub queries: Range<usize>,
    /// Positions of its keys in the packed tokens or the cache, in order of position; the last key belongs to the last
    /// query.
    pub keys: Vec<Range<usize>>,
}

impl AttentionSegment {
    /// For a sequence that attends to itself: the packed tokens that each of its queries sees.
    pub(crate) fn visible_tokens(&self, heads: AttentionHeads) -> impl Iterator<Item = Range<usize>> + use<> {
        let (first, n) = (self.queries.start, self.queries.len());
        (0..n).map(move |i| {
            let visible = heads.visible(i, n, n);
            first + visible.start..first + visible.end
        })
    }
}
