//! Which tokens of a batch have which expert, at which weights.

use crate::rows::Rows;
use std::ops::Range;
use std::sync::Arc;

/// Which tokens of a batch a group has; ascending.
#[derive(Clone, Debug)]
pub enum Tokens {
    /// Tokens that stand side by side.
    Run(Range<usize>),
    /// Tokens picked one by one.
    Picked(Vec<u32>),
}

/// An expert with its tokens.
#[derive(Clone, Debug)]
pub struct Group {
    /// Index of the expert.
    pub expert: usize,
    /// Its tokens.
    pub tokens: Tokens,
    /// A weight for each of them; one where there is none.
    pub weights: Option<Vec<f32>>,
}

impl Group {
    /// The groups of a batch in which each row names its expert, or none: neighbours of one expert become one group.
    pub fn of_rows(rows: &Rows) -> Arc<[Group]> {
        let mut groups: Vec<Group> = Vec::new();
        for row in rows.iter() {
            let Some(expert) = row.expert else { continue };
            match groups.last_mut() {
                Some(Group { expert: last, tokens: Tokens::Run(run), .. })
                    if *last == expert && run.end == row.start =>
                {
                    run.end = row.start + row.len;
                }
                _ => groups.push(Group { expert, tokens: Tokens::Run(row.tokens()), weights: None }),
            }
        }
        groups.into()
    }
}

/// The part of a group that lies within one chunk of tokens.
pub(crate) struct Part<'a> {
    pub(crate) expert: usize,
    /// Index of the first of its tokens within the whole batch, and of those that follow it.
    pub(crate) tokens: TokenSlice<'a>,
    pub(crate) weights: Option<&'a [f32]>,
}

/// Tokens of a part.
#[derive(Clone)]
pub(crate) enum TokenSlice<'a> {
    Run(Range<usize>),
    Picked(&'a [u32]),
}

impl TokenSlice<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Run(run) => run.len(),
            Self::Picked(tokens) => tokens.len(),
        }
    }

    /// Rows of `data`, `[.., width]`, in order: borrowed where they stand side by side, else gathered.
    pub(crate) fn rows<'d>(&self, data: &'d [f32], width: usize) -> std::borrow::Cow<'d, [f32]> {
        match self {
            Self::Run(run) => data[run.start * width..run.end * width].into(),
            Self::Picked(tokens) => {
                let mut rows = Vec::with_capacity(tokens.len() * width);
                tokens.iter().for_each(|&t| rows.extend_from_slice(&data[t as usize * width..][..width]));
                rows.into()
            }
        }
    }
}

impl<'a> Part<'a> {
    /// The part of `group` within the tokens of `chunk`.
    pub(crate) fn of(group: &'a Group, chunk: &Range<usize>) -> Option<Self> {
        let (tokens, from) = match &group.tokens {
            Tokens::Run(run) => {
                let start = run.start.max(chunk.start);
                let end = run.end.min(chunk.end);
                if start >= end {
                    return None;
                }
                (TokenSlice::Run(start..end), start - run.start)
            }
            Tokens::Picked(tokens) => {
                let from = tokens.partition_point(|&t| (t as usize) < chunk.start);
                let to = tokens.partition_point(|&t| (t as usize) < chunk.end);
                if from == to {
                    return None;
                }
                (TokenSlice::Picked(&tokens[from..to]), from)
            }
        };
        let weights = group.weights.as_ref().map(|w| &w[from..from + tokens.len()]);
        Some(Self { expert: group.expert, tokens, weights })
    }

    /// Multiplies the rows of `z`, `[tokens of the part, width]`, by the part's weights.
    pub(crate) fn weigh(&self, z: &mut [f32], width: usize) {
        if let Some(weights) = self.weights {
            // An expert without a block at the site has no ranks, and chunks of no length panic.
            for (row, w) in z.chunks_exact_mut(width.max(1)).zip(weights) {
                row.iter_mut().for_each(|v| *v *= w);
            }
        }
    }
}
