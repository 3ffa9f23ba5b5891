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

    /// Where the keys of its queries are: runs of them, each with its first query.
    pub(crate) fn own_keys(&self) -> Vec<(usize, Range<usize>)> {
        let (mut end, mut runs) = (self.queries.end, Vec::new());
        for keys in self.keys.iter().rev() {
            let count = keys.len().min(end - self.queries.start);
            if count == 0 {
                break;
            }
            end -= count;
            runs.push((end, keys.end - count..keys.end));
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_the_queries_are_the_last_ones() {
        let segment = |queries| AttentionSegment { queries, keys: vec![0..4, 10..12, 20..23] };
        assert_eq!(segment(5..6).own_keys(), [(5, 22..23)]);
        assert_eq!(segment(5..11).own_keys(), [(8, 20..23), (6, 10..12), (5, 3..4)]);
        assert!(segment(7..7).own_keys().is_empty());
    }
}
