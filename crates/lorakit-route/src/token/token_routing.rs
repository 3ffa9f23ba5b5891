//! Routing per token by a score for each expert: what Arrow, SpectR, LAG, centroid matching and PHATGOOSE have in common.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::mixing::{Mixing, Mixture, TokenMixture};
use crate::observer::Observer;
use crate::router::RouterContext;
use crate::stack::{RoutingScope, Stack};
use crate::token::input_norm::InputNorm;
use crate::token::prototypes::PrototypeScope;
use crate::token::scorer::ExpertScorer;
use crate::token::top_k::{ScoreSign, TopK, choices_in_order};
use candle_core::{DType, Tensor};
use lorakit_lora::{Addition, Outputs, Patch, SequenceBatch, Site, TokenGroup};
use std::sync::{Arc, OnceLock};

/// How a token's scores become weights.
#[derive(Clone, Debug)]
pub(crate) struct TopKConfig {
    /// The maximum number of experts of a token.
    pub(crate) top_k: usize,
    /// The temperature of the softmax over scores; infinite if the chosen have equal weights.
    pub(crate) temperature: f32,
    /// How a token is normalized before it is scored.
    pub(crate) input: InputNorm,
}

/// The experts of one site under such a router.
pub(crate) struct TokenRouting {
    pub(crate) config: TopKConfig,
    /// The site's index.
    pub(crate) site: usize,
    /// Number of experts of the library.
    pub(crate) experts: usize,
    /// The scores of all choices.
    pub(crate) scorer: ExpertScorer,
    /// One choice for each projection, or for the site.
    pub(crate) choices: Vec<TopK>,
    pub(crate) mixture: Mixture,
    /// The mixture for weights of every token, made on first use; see [`TokenRouting::token_mixture`].
    pub(crate) per_token: OnceLock<TokenMixture>,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

/// A patch that gives each token and projection the `top_k` experts of the highest scores at equal weights, and mixes
/// outputs. `scored` are the scores, with the candidates of each projection in their order; the site is given with its index
/// and its stack.
///
/// # Errors
/// If the experts cannot be mixed.
pub(crate) fn equal_weights(
    experts: &LibraryStack,
    (index, site, stack): (usize, &Site, &Stack),
    (scorer, candidates): (ExpertScorer, Vec<Vec<u32>>),
    top_k: usize,
    context: &RouterContext,
) -> Result<Arc<dyn Patch>> {
    let groups = PrototypeScope::Projection.groups(site);
    Ok(Arc::new(TokenRouting {
        config: TopKConfig { top_k, temperature: f32::INFINITY, input: InputNorm::Raw },
        site: index,
        experts: experts.len(),
        scorer,
        choices: choices_in_order(groups, candidates, experts.len(), ScoreSign::Kept),
        mixture: Mixture::new(Mixing::Outputs, RoutingScope::Projection, experts, site, stack)?,
        per_token: OnceLock::new(),
        observer: context.observer_at(site),
    }))
}

impl TokenRouting {
    /// The same where one expert is no candidate, with the same tensors; none if there is no other.
    pub(crate) fn without(&self, expert: usize) -> Option<Self> {
        let choices: Vec<TopK> = self.choices.iter().filter_map(|choice| choice.without(expert as u32)).collect();
        (!choices.is_empty()).then(|| Self {
            config: self.config.clone(),
            scorer: self.scorer.clone(),
            choices,
            mixture: self.mixture.clone(),
            // It has the slots of the choices.
            per_token: OnceLock::new(),
            observer: self.observer.clone(),
            ..*self
        })
    }

    fn weighs_all(&self, tokens: usize) -> bool {
        self.choices.iter().all(|choice| choice.weighs_all(tokens, self.config.top_k))
    }

    /// What [`Patch::add`] adds, chosen on the device: nothing is copied to the host, so the device does not wait.
    fn add_weighted(&self, x: &Tensor, input: &Tensor, vectors: &Tensor, out: &mut Outputs) -> candle_core::Result<()> {
        let scores = input.matmul(&vectors.t()?)?;
        let weigh = |choice: &TopK| choice.weigh(&scores, self.config.top_k, self.config.temperature);
        let weights = Tensor::cat(&self.choices.iter().map(weigh).collect::<candle_core::Result<Vec<_>>>()?, 1)?;
        let delta = self.token_mixture()?.delta(&x.to_dtype(DType::F32)?, &weights)?;
        out.add(&delta.to_dtype(out.tensor().dtype())?)
    }

    /// The mixture as [`TokenRouting::add_weighted`] takes it, made on first use.
    fn token_mixture(&self) -> candle_core::Result<&TokenMixture> {
        if let Some(made) = self.per_token.get() {
            return Ok(made);
        }
        let slots: Vec<usize> = self.choices.iter().flat_map(TopK::slots).collect();
        let made = self.mixture.per_token(&slots)?;
        Ok(self.per_token.get_or_init(|| made))
    }
}

impl Patch for TokenRouting {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        self.begin(x, rows)?(out)
    }

    fn begin<'a>(&'a self, x: &'a Tensor, rows: &'a SequenceBatch) -> candle_core::Result<Addition<'a>> {
        if x.dim(0)? == 0 {
            return Ok(Box::new(|_| Ok(())));
        }
        // The choice is not differentiated, and is made in f32: in 16 bits near ties flip.
        let input = self.config.input.apply(&x.detach().to_dtype(DType::F32)?.contiguous()?)?;
        if let Some(vectors) = self.scorer.vectors()
            && !x.device().is_cpu()
            && self.observer.is_none()
            && self.weighs_all(x.dim(0)?)
        {
            return Ok(Box::new(move |out| self.add_weighted(x, &input, vectors, out)));
        }
        // On a device the scores are copied to the host, `[tokens, candidates]`: the tokens of an expert are a list.
        let scores = self.scorer.scores(&input, &self.choices)?;
        let mut groups: Vec<TokenGroup> = Vec::new();
        for choice in &self.choices {
            let chosen = choice.choose(&scores, self.scorer.width()?, self.config.top_k, self.config.temperature);
            groups.extend(choice.groups(&chosen, self.experts));
            if let Some(observer) = &self.observer {
                choice.show(&chosen, self.site, rows, observer.as_ref());
            }
        }
        self.mixture.begin(x, groups.into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::library_stack::Expert;
    use crate::token::top_k::signed_choices;
    use candle_core::Device;
    use lorakit_adapter::{Adapter, LowRank, Matrix};
    use lorakit_format::rng::CounterRng;
    use lorakit_lora::Projection;

    const INPUT: usize = 12;
    const EXPERTS: usize = 6;

    /// Pseudo-random values in [-1, 1).
    fn values(seed: u64, count: usize) -> Vec<f32> {
        let mut rng = CounterRng::seeded(seed, 0);
        (0..count).map(|_| 2.0 * rng.uniform() - 1.0).collect()
    }

    /// Experts of one rank and of several scales; every third has no update of the second projection.
    fn library(site: &Site) -> LibraryStack {
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
        LibraryStack::new((0..EXPERTS as u64).map(expert), std::slice::from_ref(site), &Device::Cpu).unwrap()
    }

    /// Three projections with a choice for each, which compares magnitudes or signed scores; on the experts' own matrices,
    /// and on stacked ones.
    fn per_token(top_k: usize, sign: ScoreSign, mixing: Mixing) -> [TokenRouting; 2] {
        let projection = |(name, width): (&str, usize)| Projection { module: name.to_owned(), width };
        let projections = [("q", 8), ("k", 5), ("v", 6)].map(projection).into();
        let site = Site {
            layer: Some(0),
            name: "qkv",
            role: lorakit_lora::SiteRole::AttentionInput,
            input: INPUT,
            projections,
        };
        let experts = library(&site);
        let (_, _, stack) = experts.stacks().next().unwrap();
        let (vectors, mut choices) = signed_choices(&values(7, EXPERTS * INPUT), &experts, &site);
        choices.iter_mut().for_each(|choice| choice.sign = sign);
        let rows = vectors.len() / INPUT;
        [Mixture::new, Mixture::stacked].map(|mixture| TokenRouting {
            config: TopKConfig { top_k, temperature: 0.7, input: InputNorm::Unit },
            site: 0,
            experts: EXPERTS,
            scorer: ExpertScorer::Vectors(Tensor::from_slice(&vectors, (rows, INPUT), &Device::Cpu).unwrap()),
            choices: choices.clone(),
            mixture: mixture(mixing, RoutingScope::Projection, &experts, &site, stack).unwrap(),
            per_token: OnceLock::new(),
            observer: None,
        })
    }

    #[test]
    fn weighing_on_the_device_equals_choosing_on_the_cpu() {
        let x = Tensor::from_vec(values(3, 9 * INPUT), (9, INPUT), &Device::Cpu).unwrap();
        let before = Tensor::from_vec(values(4, 9 * 19), (9, 19), &Device::Cpu).unwrap();
        let zeros = || Outputs::new(before.copy().unwrap());
        for sign in [ScoreSign::Ignored, ScoreSign::Kept] {
            for mixing in [Mixing::Outputs, Mixing::Separate] {
                for top_k in [1, 2, 5, usize::MAX] {
                    let [own, stacked] = per_token(top_k, sign, mixing);
                    let (mut listed, mut weighted) = (zeros(), zeros());
                    own.add(&x, &SequenceBatch::packed([9]), &mut listed).unwrap();
                    let (input, vectors) = (stacked.config.input.apply(&x).unwrap(), stacked.scorer.vectors().unwrap());
                    stacked.add_weighted(&x, &input, vectors, &mut weighted).unwrap();
                    let of = |difference: candle_core::Result<Tensor>| -> f32 {
                        let values: Vec<f32> = difference.unwrap().flatten_all().unwrap().to_vec1().unwrap();
                        values.into_iter().map(f32::abs).max_by(f32::total_cmp).unwrap()
                    };
                    let added = of(listed.tensor() - &before);
                    let apart = of(listed.tensor() - weighted.tensor());
                    assert!(added > 0.1 && apart < 1e-5 * added, "{sign:?} {mixing:?} {top_k}: {apart} of {added}");
                }
            }
        }
    }
}
