//! LAG: Arrow makes a shortlist of experts for each token, and the one of them that reads most of it serves it
//! (Fleshman and Van Durme 2025, <https://arxiv.org/abs/2507.05346>).
//!
//! With `s B A = U S V'` the singular value decomposition of an expert's delta at a projection, a token `x` first takes the
//! `top_k` experts of the largest `|<x, v_1>|`, Arrow's score; of these the one of the largest `|V' x|`, SpectR's
//! ([`crate::Spectr`]), serves it alone: `y = W x + s_i B_i A_i x`. So `top_k=1` is Arrow with one expert, and `top_k=all` SpectR
//! with one.
//!
//! An expert whose delta is zero at a projection is no candidate there, equal scores go to the first name, and at an
//! embedding every expert has weight 1/n.
//!
//! Cost: Arrow's product, and one of each token with the ranks of its shortlist, or of all experts if the shortlist is long.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use crate::router::{Router, RouterContext};
use crate::token::prototypes::{PrototypeScope, prototypes};
use crate::token::scorer::ExpertScorer;
use crate::token::subspace_patches::subspace_patches;
use crate::token::subspaces::SubspaceMeasure;
use crate::token::token_routing::equal_weights;
use candle_core::Tensor;
use lorakit_lora::Patches;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `lag`.
pub static LAG: MethodInfo<dyn Router> = MethodInfo {
    name: "lag",
    aliases: &[],
    summary: "per token, of the experts that Arrow scores highest the one whose delta reads most of it",
    link: Some("https://arxiv.org/abs/2507.05346"),
    defaults: defaults::<Lag>,
    parse: |name, typed| Ok(Arc::new(read::<Lag>(name, typed)?)),
    version: 1,
};

/// The router `lag`. The default is the paper's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lag {
    /// The length of the shortlist; if a projection has fewer candidates, all of them.
    pub top_k: Limit,
}

impl Default for Lag {
    fn default() -> Self {
        Self { top_k: Limit(20) }
    }
}

impl Settings for Lag {}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, LAG.name, self)
    }
}

impl Router for Lag {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &LAG
    }

    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        subspace_patches(experts, SubspaceMeasure::Length, |(index, site, stack), subspaces, candidates| {
            // Those of the same experts.
            let vectors = prototypes(experts, site, &PrototypeScope::Projection.groups(site))?.vectors;
            let vectors = Tensor::from_vec(vectors, (subspaces.len(), site.input), stack.device())?;
            let scored = (ExpertScorer::Shortlist { vectors, top_k: self.top_k.0, subspaces }, candidates);
            equal_weights(experts, (index, site, stack), scored, 1, context)
        })
    }
}
