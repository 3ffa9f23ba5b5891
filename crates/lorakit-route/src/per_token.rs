//! Routing per token by one vector for each expert: what Arrow, centroid matching and PHATGOOSE have in common.

use crate::gate::Gate;
use crate::inner_products::inner_products;
use crate::mixing::{Mixture, TokenMixture};
use crate::observer::Observer;
use candle_core::{D, DType, Tensor};
use lorakit_lora::{Outputs, Patch, SequenceBatch, TokenGroup};
use std::sync::{Arc, OnceLock};

/// What is added to a variance before its root, as in torch's LayerNorm.
const EPSILON: f64 = 1e-5;

/// How a token's scores become weights.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    /// How many experts a token has at most.
    pub(crate) top_k: usize,
    /// What scores are divided by before the softmax.
    pub(crate) temperature: f32,
    /// What the vectors are multiplied with.
    pub(crate) reading: Reading,
}

/// What of a token, or of a vector, is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// All of it, its length too.
    AsIs,
    /// Its direction: divided by its length.
    Unit,
    /// Less its mean and divided by its deviation, as LayerNorm without gain and bias.
    Standardised,
}

impl Reading {
    /// Reads rows `[n, d]`.
    pub(crate) fn of(self, rows: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::AsIs => Ok(rows.clone()),
            Self::Unit => {
                let length = rows.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
                // A row of zeros has no direction, and stays.
                rows.broadcast_div(&length.maximum(f32::MIN_POSITIVE)?)
            }
            Self::Standardised => {
                let centred = rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?;
                let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPSILON)?.sqrt()?;
                centred.broadcast_div(&deviation)
            }
        }
    }
}

/// The experts of one site under such a router.
pub(crate) struct PerToken {
    pub(crate) rule: Rule,
    /// The site's index.
    pub(crate) site: usize,
    /// Number of experts of the library.
    pub(crate) experts: usize,
    /// The vectors of all gates, `[candidates of all gates, in]`: one product makes all scores of the site.
    pub(crate) vectors: Tensor,
    pub(crate) gates: Vec<Gate>,
    pub(crate) mixture: Mixture,
    /// The mixture for weights of every token; see [`PerToken::token_mixture`].
    pub(crate) weighed: OnceLock<TokenMixture>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl PerToken {
    fn weighs_all(&self, tokens: usize) -> bool {
        self.gates.iter().all(|gate| gate.weighs_all(tokens, self.rule.top_k))
    }

    /// What [`Patch::add`] adds, chosen where the tokens are: nothing comes back from a device, which goes on by itself.
    fn add_weighed(&self, x: &Tensor, input: &Tensor, out: &mut Outputs) -> candle_core::Result<()> {
        let scores = input.matmul(&self.vectors.t()?)?;
        let weigh = |gate: &Gate| gate.weigh(&scores, self.rule.top_k, self.rule.temperature);
        let weights = Tensor::cat(&self.gates.iter().map(weigh).collect::<candle_core::Result<Vec<_>>>()?, 1)?;
        let delta = self.token_mixture()?.delta(&x.to_dtype(DType::F32)?, &weights)?;
        out.add(&delta.to_dtype(out.tensor().dtype())?)
    }

    /// The mixture as [`PerToken::add_weighed`] takes it, made when it is first needed.
    fn token_mixture(&self) -> candle_core::Result<&TokenMixture> {
        if let Some(made) = self.weighed.get() {
            return Ok(made);
        }
        let slots: Vec<usize> = self.gates.iter().flat_map(Gate::slots).collect();
        let made = self.mixture.token_gated(&slots)?;
        Ok(self.weighed.get_or_init(|| made))
    }
}

impl Patch for PerToken {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        if x.dim(0)? == 0 {
            return Ok(());
        }
        // The choice is not differentiated, and is made in f32: in 16 bits near ties flip.
        let input = self.rule.reading.of(&x.detach().to_dtype(DType::F32)?.contiguous()?)?;
        if !x.device().is_cpu() && self.observer.is_none() && self.weighs_all(x.dim(0)?) {
            return self.add_weighed(x, &input, out);
        }
        // From a device the scores come to the CPU, `[tokens, candidates]`: which tokens an expert has is a list.
        let scores = inner_products(&input, &self.vectors)?;
        let mut groups: Vec<TokenGroup> = Vec::new();
        for gate in &self.gates {
            let chosen = gate.choose(&scores, self.vectors.dim(0)?, self.rule.top_k, self.rule.temperature);
            groups.extend(gate.groups(&chosen, self.experts));
            if let Some(observer) = &self.observer {
                gate.show(&chosen, self.site, rows, observer.as_ref());
            }
        }
        self.mixture.add(x, groups.into(), out)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::experts::{Expert, Experts};
    use crate::gate::Counts;
    use crate::mixing::Mixing;
    use crate::stack::Choice;
    use candle_core::Device;
    use lorakit_adapter::{Adapter, LowRank, Matrix};
    use lorakit_lora::{Projection, Site};

    const INPUT: usize = 12;
    const EXPERTS: usize = 6;

    /// Values in (-1, 1) that look random.
    fn values(seed: u64, count: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Experts of one rank and of several scales; every third has no update of the second projection.
    fn library(site: &Site) -> Experts {
        let expert = |e: u64| {
            let pair = |(i, projection): (usize, &Projection)| {
                let (rank, seed) = (2, 10 * e + i as u64);
                let a = Matrix::new(rank, INPUT, values(seed, rank * INPUT)).unwrap();
                let b = Matrix::new(projection.width, rank, values(seed + 1000, projection.width * rank)).unwrap();
                (projection.module.clone(), LowRank::new(a, b, 0.5 + e as f64).unwrap())
            };
            let kept = site.projections.iter().enumerate().filter(|(i, _)| *i != 1 || !e.is_multiple_of(3));
            Expert::new(format!("e{e}"), Adapter::new(kept.map(pair).collect()))
        };
        Experts::new((0..EXPERTS as u64).map(expert), std::slice::from_ref(site), &Device::Cpu).unwrap()
    }

    /// Three projections, a gate for each, which compare magnitudes or signs.
    fn per_token(top_k: usize, counts: Counts, mixing: Mixing) -> PerToken {
        let projection = |(name, width): (&str, usize)| Projection { module: name.to_owned(), width };
        let projections = [("q", 8), ("k", 5), ("v", 6)].map(projection).into();
        let site = Site { layer: Some(0), name: "qkv", input: INPUT, projections };
        let experts = library(&site);
        let (_, _, stack) = experts.stacks().next().unwrap();
        let (vectors, mut gates) = crate::gate::signed_gates(&values(7, EXPERTS * INPUT), &experts, &site);
        gates.iter_mut().for_each(|gate| gate.counts = counts);
        let rows = vectors.len() / INPUT;
        PerToken {
            rule: Rule { top_k, temperature: 0.7, reading: Reading::Unit },
            site: 0,
            experts: EXPERTS,
            vectors: Tensor::from_vec(vectors, (rows, INPUT), &Device::Cpu).unwrap(),
            gates,
            mixture: Mixture::new(mixing, Choice::Projection, &experts, &site, stack).unwrap(),
            weighed: OnceLock::new(),
            observer: None,
        }
    }

    #[test]
    fn a_choice_made_in_place_is_that_of_the_cpu() {
        let x = Tensor::from_vec(values(3, 9 * INPUT), (9, INPUT), &Device::Cpu).unwrap();
        let before = Tensor::from_vec(values(4, 9 * 19), (9, 19), &Device::Cpu).unwrap();
        let zeros = || Outputs::new(before.copy().unwrap());
        for counts in [Counts::Magnitude, Counts::Signed] {
            for mixing in [Mixing::Outputs, Mixing::Separate] {
                for top_k in [1, 2, 5, usize::MAX] {
                    let patch = per_token(top_k, counts, mixing);
                    let (mut listed, mut weighed) = (zeros(), zeros());
                    patch.add(&x, &SequenceBatch::packed([9]), &mut listed).unwrap();
                    patch.add_weighed(&x, &patch.rule.reading.of(&x).unwrap(), &mut weighed).unwrap();
                    let of = |t: Tensor| t.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>();
                    let added = of((listed.tensor() - &before).unwrap()).unwrap();
                    let apart = of((listed.tensor() - weighed.tensor()).unwrap()).unwrap();
                    assert!(added > 0.1 && apart < 1e-5 * added, "{counts:?} {mixing:?} {top_k}: {apart} of {added}");
                }
            }
        }
    }
}
