//! Which tokens of a batch use which expert, and with which weights.

use crate::sequence_batch::SequenceBatch;
use std::ops::Range;
use std::sync::Arc;

/// Some tokens of a batch, ascending.
#[derive(Clone, Debug)]
pub enum TokenSelection {
    /// Consecutive tokens.
    Contiguous(Range<usize>),
    /// Tokens by index.
    Indices(Vec<u32>),
}

/// An expert with its tokens.
#[derive(Clone, Debug)]
pub struct TokenGroup {
    /// Index of the expert.
    pub expert: usize,
    /// Its tokens.
    pub tokens: TokenSelection,
    /// One weight per token; all one if there are none.
    pub weights: Option<Vec<f32>>,
}

impl TokenGroup {
    /// The groups of a batch whose sequences name their expert, or none: adjacent sequences of one expert form one group.
    pub fn of_sequences(batch: &SequenceBatch) -> Arc<[TokenGroup]> {
        let mut groups: Vec<TokenGroup> = Vec::new();
        for row in batch.iter() {
            let Some(expert) = row.expert else { continue };
            match groups.last_mut() {
                Some(TokenGroup { expert: last, tokens: TokenSelection::Contiguous(run), .. })
                    if *last == expert && run.end == row.start =>
                {
                    run.end = row.start + row.len;
                }
                _ => {
                    groups.push(TokenGroup { expert, tokens: TokenSelection::Contiguous(row.tokens()), weights: None })
                }
            }
        }
        groups.into()
    }
}

/// The part of a group within one chunk of tokens.
pub(crate) struct GroupPart<'a> {
    pub(crate) expert: usize,
    /// Its tokens, by their index within the whole batch.
    pub(crate) tokens: TokenSlice<'a>,
    pub(crate) weights: Option<&'a [f32]>,
    /// The first token of the chunk.
    pub(crate) chunk_start: usize,
}

/// The tokens of a part.
#[derive(Clone)]
pub(crate) enum TokenSlice<'a> {
    Contiguous(Range<usize>),
    Indices(&'a [u32]),
}

impl TokenSlice<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Contiguous(run) => run.len(),
            Self::Indices(tokens) => tokens.len(),
        }
    }

    /// The tokens' rows of `data`, `[.., width]`: borrowed if consecutive, else gathered.
    pub(crate) fn rows<'d>(&self, data: &'d [f32], width: usize) -> std::borrow::Cow<'d, [f32]> {
        match self {
            Self::Contiguous(run) => data[run.start * width..run.end * width].into(),
            Self::Indices(tokens) => {
                let mut rows = Vec::with_capacity(tokens.len() * width);
                tokens.iter().for_each(|&t| rows.extend_from_slice(&data[t as usize * width..][..width]));
                rows.into()
            }
        }
    }
}

impl<'a> GroupPart<'a> {
    /// The part of `group` within the tokens of `chunk`.
    pub(crate) fn of(group: &'a TokenGroup, chunk: &Range<usize>) -> Option<Self> {
        let (tokens, from) = match &group.tokens {
            TokenSelection::Contiguous(run) => {
                let start = run.start.max(chunk.start);
                let end = run.end.min(chunk.end);
                if start >= end {
                    return None;
                }
                (TokenSlice::Contiguous(start..end), start - run.start)
            }
            TokenSelection::Indices(tokens) => {
                let from = tokens.partition_point(|&t| (t as usize) < chunk.start);
                let to = tokens.partition_point(|&t| (t as usize) < chunk.end);
                if from == to {
                    return None;
                }
                (TokenSlice::Indices(&tokens[from..to]), from)
            }
        };
        let weights = group.weights.as_ref().map(|w| &w[from..from + tokens.len()]);
        Some(Self { expert: group.expert, tokens, weights, chunk_start: chunk.start })
    }

    /// Multiplies the rows of `z`, `[tokens of the part, width]`, by the part's weights.
    pub(crate) fn apply_weights(&self, z: &mut [f32], width: usize) {
        if let Some(weights) = self.weights {
            // An expert without a block at the site has no ranks, and `chunks_exact_mut(0)` panics.
            for (row, w) in z.chunks_exact_mut(width.max(1)).zip(weights) {
                row.iter_mut().for_each(|v| *v *= w);
            }
        }
    }
}
