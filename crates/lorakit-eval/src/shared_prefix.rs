//! Several continuations of one prompt, which is read once.

use anyhow::Result;
use candle_core::{DType, Tensor};
use lorakit_lora::SequenceBatch;
use lorakit_model::Decoding;
use lorakit_model::layer::lm_head::HeadPatch;

use crate::patched_model::PatchedModel;
use lorakit_lora::Sequence;

/// A sequence of which the tokens from `from` on are to be predicted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Branch {
    /// What is read and predicted; the last token is predicted only.
    pub tokens: Vec<u32>,
    /// The first predicted token; at least 1, since nothing predicts the first of all.
    pub from: usize,
}

impl Branch {
    /// A context and what should follow it.
    pub fn new(context: &[u32], continuation: &[u32]) -> Branch {
        Branch { tokens: [context, continuation].concat(), from: context.len() }
    }

    /// The tokens that the model reads.
    fn read(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }
}

/// Paths that begin alike, as the choices of a question do.
#[derive(Clone, Debug)]
pub(crate) struct PrefixTree {
    paths: Vec<Branch>,
    /// How many tokens all paths share.
    shared: usize,
}

impl PrefixTree {
    /// Shares the longest common beginning, but always leaves each path the token from which its first prediction is
    /// made: so every prediction of a path comes from the path's own tokens.
    pub fn new(paths: Vec<Branch>) -> PrefixTree {
        let bound = paths.iter().map(|path| path.from - 1).min().unwrap_or(0);
        let common = |path: &Branch| paths[0].tokens.iter().zip(&path.tokens).take_while(|(a, b)| a == b).count();
        let shared = paths.iter().map(common).fold(bound, usize::min);
        PrefixTree { paths, shared }
    }

    /// How many tokens are read, the shared ones once.
    pub fn tokens(&self) -> usize {
        self.shared + self.paths.iter().map(|path| path.read().len() - self.shared).sum::<usize>()
    }

    fn trunk(&self) -> &[u32] {
        self.paths.first().map_or(&[], |path| &path.tokens[..self.shared])
    }
}

/// The negative log-likelihoods of the predicted tokens: `[fan][path][token]`. All fans are read in two forwards, one
/// of what is shared and one of what is not. Each fan comes with what its rows carry.
pub(crate) fn nll(model: &PatchedModel, fans: &[(&PrefixTree, Sequence)]) -> Result<Vec<Vec<Vec<f64>>>> {
    let slots = fans.iter().map(|(fan, _)| fan.tokens()).sum();
    let mut decoding = Decoding::new(model.base, model.patches, slots)?;
    let trunks = read_trunks(fans, &mut decoding)?;
    let mut fed = Vec::new();
    let (mut at, mut targets, mut offset, mut rows) = (Vec::new(), Vec::new(), 0, Vec::new());
    for ((fan, row), &trunk) in fans.iter().zip(&trunks) {
        for path in &fan.paths {
            let own = &path.read()[fan.shared..];
            fed.push((decoding.branch(trunk, own.len())?, own));
            at.extend((path.from..path.tokens.len()).map(|t| (offset + t - 1 - fan.shared) as u32));
            rows.push(Sequence { start: targets.len(), len: path.tokens.len() - path.from, ..row.clone() });
            targets.extend_from_slice(&path.tokens[path.from..]);
            offset += own.len();
        }
    }
    let h = decoding.feed(&fed)?;
    let h = h.index_select(&Tensor::from_slice(&at, at.len(), h.device())?, 0)?;
    let rows = SequenceBatch::new(rows);
    let nll = model
        .base
        .head()
        .nll(&h, &targets, HeadPatch::of(model.patches, &rows))?
        .to_dtype(DType::F64)?
        .to_vec1::<f64>()?;
    Ok(by_path(fans, &nll))
}

/// Opens a row for each fan and feeds it what the fan's paths share.
fn read_trunks(fans: &[(&PrefixTree, Sequence)], decoding: &mut Decoding) -> Result<Vec<usize>> {
    let open = |(fan, row): &(&PrefixTree, Sequence)| decoding.open(fan.shared, row.clone());
    let trunks = fans.iter().map(open).collect::<candle_core::Result<Vec<_>>>()?;
    let shared = trunks.iter().zip(fans).map(|(&row, (fan, _))| (row, fan.trunk()));
    let fed: Vec<(usize, &[u32])> = shared.filter(|(_, tokens)| !tokens.is_empty()).collect();
    if !fed.is_empty() {
        decoding.feed(&fed)?;
    }
    Ok(trunks)
}

fn by_path(fans: &[(&PrefixTree, Sequence)], mut nll: &[f64]) -> Vec<Vec<Vec<f64>>> {
    let mut take = |path: &Branch| {
        let (own, rest) = nll.split_at(path.tokens.len() - path.from);
        nll = rest;
        own.to_vec()
    };
    fans.iter().map(|(fan, _)| fan.paths.iter().map(&mut take).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_before_the_first_prediction_is_never_shared() {
        let fan = |paths: &[(&[u32], &[u32])]| PrefixTree::new(paths.iter().map(|(c, t)| Branch::new(c, t)).collect());
        // Two tokens are shared; 3 is read by both, with 4 and 5, and with 4.
        let same = fan(&[(&[1, 2, 3], &[4, 5, 6]), (&[1, 2, 3], &[4, 7])]);
        assert_eq!((same.shared, same.tokens()), (2, 2 + 3 + 2));
        let earlier = fan(&[(&[1, 2, 3], &[4]), (&[1, 9, 3], &[4])]);
        assert_eq!((earlier.shared, earlier.tokens()), (1, 1 + 2 + 2));
        let apart = fan(&[(&[1, 2], &[3]), (&[8, 2], &[3])]);
        assert_eq!((apart.shared, apart.tokens()), (0, 4));
    }
}
