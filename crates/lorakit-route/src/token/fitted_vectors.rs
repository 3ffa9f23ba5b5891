//! Patches of a router that compares a token with one fitted vector of each expert: what centroid matching and PHATGOOSE
//! have in common.

use crate::error::Result;
use crate::fixed::uniform::uniform_patch;
use crate::library_stack::LibraryStack;
use crate::mixing::{Mixing, Mixture};
use crate::router::RouterContext;
use crate::router_state::RouterState;
use crate::site_patches::site_patches;
use crate::stack::{RoutingScope, Stack};
use crate::token::input_norm::InputNorm;
use crate::token::scorer::ExpertScorer;
use crate::token::token_routing::{TokenRouting, TopKConfig};
use crate::token::top_k::signed_choices;
use candle_core::{Device, Tensor};
use lorakit_lora::{Patch, Patches, Site};
use std::sync::{Arc, OnceLock};

/// The vectors of all experts, and how they are used.
pub(crate) struct FittedVectors<'a> {
    /// For each site `SITE`, as `3.qkv`, the matrix `SITE`, `[experts, in]`.
    pub(crate) state: &'a RouterState,
    /// How a vector is normalized.
    pub(crate) norm: InputNorm,
    /// How the chosen experts' deltas are combined.
    pub(crate) mixing: Mixing,
}

impl FittedVectors<'_> {
    /// Patches that choose for each token and projection by `config`, which is given the width of a site's input. Outside
    /// the layers, where nothing is fitted, experts are mixed uniformly.
    ///
    /// # Errors
    /// If the state was fitted to another library; under separate mixing, if ranks differ at a projection.
    pub(crate) fn patches(
        &self,
        experts: &LibraryStack,
        context: &RouterContext,
        config: impl Fn(usize) -> TopKConfig + Sync,
    ) -> Result<Patches> {
        site_patches(experts, |index, site, stack| match site.layer {
            None => uniform_patch(self.mixing, experts, site, stack),
            Some(_) => self.site_patch(experts, context, (index, site, stack), config(site.input)),
        })
    }

    /// The patch of a site, given with its index and its stack.
    fn site_patch(
        &self,
        experts: &LibraryStack,
        context: &RouterContext,
        (index, site, stack): (usize, &Site, &Stack),
        config: TopKConfig,
    ) -> Result<Option<Arc<dyn Patch>>> {
        let shape = (experts.len(), site.input);
        let fitted = Tensor::from_vec(self.state.values(&site.key(), shape)?, shape, &Device::Cpu)?;
        let fitted = self.norm.apply(&fitted)?.flatten_all()?.to_vec1::<f32>()?;
        let (vectors, choices) = signed_choices(&fitted, experts, site);
        if choices.is_empty() {
            return Ok(None);
        }
        let rows = vectors.len() / site.input;
        Ok(Some(Arc::new(TokenRouting {
            config,
            site: index,
            experts: experts.len(),
            scorer: ExpertScorer::Vectors(Tensor::from_vec(vectors, (rows, site.input), stack.device())?),
            choices,
            mixture: Mixture::new(self.mixing, RoutingScope::Projection, experts, site, stack)?,
            per_token: OnceLock::new(),
            observer: context.observer_at(site),
        })))
    }
}
