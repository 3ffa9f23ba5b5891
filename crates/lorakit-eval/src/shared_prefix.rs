//! Several continuations of one prompt, which is processed once.

use candle_core::{DType, Tensor};
use lorakit_model::CachedDecoder;
use lorakit_model::layer::lm_head::HeadPatch;

use crate::error::Result;
use crate::patched_model::PatchedModel;
use lorakit_lora::{Sequence, SequenceBatch};
use lorakit_task::RowLayout;

/// A sequence whose tokens from `from` on are predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Branch {
    /// All tokens; the last one is predicted only.
    pub tokens: Vec<u32>,
    /// The first predicted token; at least 1, since nothing predicts the first token.
    pub from: usize,
}

impl Branch {
    /// A context and its continuation.
    pub fn new(context: &[u32], continuation: &[u32]) -> Branch {
        Branch { tokens: [context, continuation].concat(), from: context.len() }
    }

    /// The tokens that the model processes.
    fn read(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }
}

/// Branches with a common prefix, such as the choices of a question.
#[derive(Clone, Debug)]
pub(crate) struct PrefixTree {
    branches: Vec<Branch>,
    /// The length of the shared prefix.
    shared: usize,
    /// The number of tokens that an encoder reads, in every branch the first.
    source: Option<usize>,
}

impl PrefixTree {
    /// Branches of rows of a layout, in as few trees as can be, one after the other: an encoder's source is shared as a whole,
    /// or each branch is a tree of its own.
    pub fn of_rows(branches: Vec<Branch>, layout: RowLayout) -> Vec<PrefixTree> {
        if layout == RowLayout::Stream {
            return vec![PrefixTree::new(branches)];
        }
        let with_source = |branches: Vec<Branch>| {
            let source = branches.first().map(|branch| layout.source_len(branch.from));
            PrefixTree { source, ..PrefixTree::new(branches) }
        };
        let together = with_source(branches.clone());
        let is_shared = |branch: &Branch| layout.source_len(branch.from) == together.shared;
        match branches.iter().all(is_shared) {
            true => vec![together],
            false => branches.into_iter().map(|branch| with_source(vec![branch])).collect(),
        }
    }

    /// Shares the longest common prefix, except the token that makes a branch's first prediction: every prediction of a
    /// branch comes from its own tokens.
    pub fn new(branches: Vec<Branch>) -> PrefixTree {
        let bound = branches.iter().map(|branch| branch.from - 1).min().unwrap_or(0);
        let common =
            |branch: &Branch| branches[0].tokens.iter().zip(&branch.tokens).take_while(|(a, b)| a == b).count();
        let shared = branches.iter().map(common).fold(bound, usize::min);
        PrefixTree { branches, shared, source: None }
    }

    /// The number of tokens that are processed, the shared ones once.
    pub fn tokens(&self) -> usize {
        self.shared + self.branches.iter().map(|branch| branch.read().len() - self.shared).sum::<usize>()
    }

    fn prefix(&self) -> &[u32] {
        self.branches.first().map_or(&[], |branch| &branch.tokens[..self.shared])
    }
}

/// The negative log-likelihoods of the predicted tokens: `[tree][branch][token]`. All trees take two forwards, one over
/// the shared prefixes and one over the branches. Each tree comes with what its rows carry.
pub(crate) fn nll(model: &PatchedModel, trees: &[(&PrefixTree, Sequence)]) -> Result<Vec<Vec<Vec<f64>>>> {
    let capacity = trees.iter().map(|(tree, _)| tree.tokens()).sum();
    let mut decoder = CachedDecoder::new(model.base, model.patches, capacity)?;
    let prefixes = feed_prefixes(model, trees, &mut decoder)?;
    let mut fed = Vec::new();
    let (mut at, mut targets, mut offset, mut rows) = (Vec::new(), Vec::new(), 0, Vec::new());
    for ((tree, row), &prefix) in trees.iter().zip(&prefixes) {
        for branch in &tree.branches {
            let own = &branch.read()[tree.shared..];
            let branched = decoder.branch(prefix, own.len())?;
            decoder.declare_length(branched, branch.tokens.len());
            fed.push((branched, own));
            at.extend((branch.from..branch.tokens.len()).map(|t| (offset + t - 1 - tree.shared) as u32));
            rows.push(Sequence { start: targets.len(), len: branch.tokens.len() - branch.from, ..row.clone() });
            targets.extend_from_slice(&branch.tokens[branch.from..]);
            offset += own.len();
        }
    }
    let h = decoder.forward(&fed, model.precision)?;
    let h = h.index_select(&Tensor::from_slice(&at, at.len(), h.device())?, 0)?;
    let rows = SequenceBatch::new(rows);
    let patch = HeadPatch::of(model.patches, &rows);
    let nll = model.base.lm_head().nll_at(&h, &targets, patch, model.precision)?;
    let nll = nll.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    Ok(by_branch(trees, &nll))
}

/// Opens a row for each tree and feeds it the shared prefix.
fn feed_prefixes(
    model: &PatchedModel,
    trees: &[(&PrefixTree, Sequence)],
    decoder: &mut CachedDecoder,
) -> Result<Vec<usize>> {
    let open = |(tree, row): &(&PrefixTree, Sequence)| {
        let whole = tree.branches.first().map(|branch| branch.tokens.len());
        decoder.open(tree.shared, Sequence { whole, source: tree.source, ..row.clone() })
    };
    let prefixes = trees.iter().map(open).collect::<candle_core::Result<Vec<_>>>()?;
    let shared = prefixes.iter().zip(trees).map(|(&row, (tree, _))| (row, tree.prefix()));
    let fed: Vec<(usize, &[u32])> = shared.filter(|(_, tokens)| !tokens.is_empty()).collect();
    if !fed.is_empty() {
        decoder.forward(&fed, model.precision)?;
    }
    Ok(prefixes)
}

fn by_branch(trees: &[(&PrefixTree, Sequence)], mut nll: &[f64]) -> Vec<Vec<Vec<f64>>> {
    let mut take = |branch: &Branch| {
        let (own, rest) = nll.split_at(branch.tokens.len() - branch.from);
        nll = rest;
        own.to_vec()
    };
    trees.iter().map(|(tree, _)| tree.branches.iter().map(&mut take).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_before_the_first_prediction_is_never_shared() {
        let tree =
            |branches: &[(&[u32], &[u32])]| PrefixTree::new(branches.iter().map(|(c, t)| Branch::new(c, t)).collect());
        // Two tokens are shared; both branches process 3, with 4 and 5, and with 4.
        let same = tree(&[(&[1, 2, 3], &[4, 5, 6]), (&[1, 2, 3], &[4, 7])]);
        assert_eq!((same.shared, same.tokens()), (2, 2 + 3 + 2));
        let earlier = tree(&[(&[1, 2, 3], &[4]), (&[1, 9, 3], &[4])]);
        assert_eq!((earlier.shared, earlier.tokens()), (1, 1 + 2 + 2));
        let apart = tree(&[(&[1, 2], &[3]), (&[8, 2], &[3])]);
        assert_eq!((apart.shared, apart.tokens()), (0, 4));
    }

    #[test]
    fn a_source_is_shared_as_a_whole_or_not_at_all() {
        let trees = |branches: &[(&[u32], &[u32])]| {
            let branches = branches.iter().map(|(context, target)| Branch::new(context, target)).collect();
            let trees = PrefixTree::of_rows(branches, RowLayout::SourceTarget { start: 0 });
            trees.into_iter().map(|tree| (tree.shared, tree.source, tree.tokens())).collect::<Vec<_>>()
        };
        // The source is 5, 6; the decoder reads 0, 7, 8 and 0.
        assert_eq!(trees(&[(&[5, 6, 0], &[7, 8, 9]), (&[5, 6, 0], &[4])]), [(2, Some(2), 2 + 3 + 1)]);
        // A source that was cut further.
        assert_eq!(trees(&[(&[5, 5, 0], &[7, 8]), (&[5, 0], &[7])]), [(2, Some(2), 4), (1, Some(1), 2)]);
    }
}
