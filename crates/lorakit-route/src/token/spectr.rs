//! SpectR: a token goes to the experts that read most of it (Fleshman and Van Durme 2025,
//! <https://arxiv.org/abs/2504.03454>).
//!
//! With `s B A = U S V'` the singular value decomposition of an expert's delta at a projection, a token `x` scores the
//! expert by `|V' x|`, the length of its part in the expert's input space (`measure=length`, as published), or by
//! `|S V' x| = |s B A x|`, the length of what the expert would add (`measure=norm`). The `top_k` highest serve it, each at
//! weight `1 / k`: `y = W x + (1/k) sum_i s_i B_i A_i x`. The authors' code averages `U S` and `V'` apart, whose cross terms
//! depend on the arbitrary signs of singular vectors; here outputs are mixed.
//!
//! Both scores depend on the delta alone: the pair `(B R^-1, R A)` gives the same. If all experts share their A, and no B
//! loses rank, all lengths are equal: take the norm. As with [`crate::Arrow`], an expert whose delta is zero at a projection
//! is no candidate there, equal scores go to the first name, and at an embedding every expert has weight 1/n.
//!
//! Cost: one product of each token with all experts' ranks, where Arrow has one row for each expert.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use crate::router::{Router, RouterContext};
use crate::token::scorer::ExpertScorer;
use crate::token::subspace_patches::subspace_patches;
use crate::token::subspaces::SubspaceMeasure;
use crate::token::token_routing::equal_weights;
use lorakit_lora::Patches;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `spectr`.
pub static SPECTR: MethodInfo<dyn Router> = MethodInfo {
    name: "spectr",
    aliases: &[],
    summary: "per token, the experts whose deltas read most of it, at equal weights",
    link: Some("https://arxiv.org/abs/2504.03454"),
    defaults: defaults::<Spectr>,
    parse: |name, typed| Ok(Arc::new(read::<Spectr>(name, typed)?)),
    version: 1,
};

/// The router `spectr`. The defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spectr {
    /// What a token scores an expert by.
    pub measure: SubspaceMeasure,
    /// The number of experts of each token; if a projection has fewer candidates, all of them.
    pub top_k: Limit,
}

impl Default for Spectr {
    fn default() -> Self {
        Self { measure: SubspaceMeasure::Length, top_k: Limit(4) }
    }
}

impl Settings for Spectr {}

impl fmt::Display for Spectr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, SPECTR.name, self)
    }
}

impl Router for Spectr {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &SPECTR
    }

    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        subspace_patches(experts, self.measure, |at, subspaces, candidates| {
            equal_weights(experts, at, (ExpertScorer::Subspaces(subspaces), candidates), self.top_k.0, context)
        })
    }
}
