//! Arrow: a token goes to the experts whose deltas amplify its direction most
//! (Ostapenko et al. 2024, <https://arxiv.org/abs/2405.11157>, algorithm 2).
//!
//! The prototype of an expert at a projection is the top right singular vector `v` of its delta `s B A`
//! ([`crate::token::prototypes`]). A token `x` scores each expert by `|<x, v>|`, keeps the `top_k` highest, and mixes
//! those by a softmax over their scores. At an embedding, whose input is a token id and has no direction, every expert
//! has weight 1/n. The knowledge of general experts may be subtracted from all others first:
//! [`crate::token::general_knowledge`].
//!
//! An expert whose delta at a projection is zero has no direction there and is no candidate, however large `top_k` is. In
//! PEFT it has a prototype of zeros, whose score of 0 still takes a share of the softmax from the others once `top_k`
//! reaches it.

use crate::error::Result;
use crate::fixed::uniform::uniform_patch;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, above_zero, defaults, joined, read};
use crate::mixing::{Mixing, Mixture};
use crate::observer::Observer;
use crate::router::{Router, RouterContext};
use crate::settings_text::to_pairs;
use crate::site_patches::site_patches;
use crate::stack::{RoutingScope, Stack};
use crate::token::general_knowledge::{GeneralExperts, SubtractionSpace, subtracted};
use crate::token::input_norm::InputNorm;
use crate::token::prototypes::{PrototypeScope, Prototypes, prototypes};
use crate::token::scorer::ExpertScorer;
use crate::token::token_routing::{TokenRouting, TopKConfig};
use crate::token::top_k::{ScoreSign, choices_in_order};
use candle_core::Tensor;
use lorakit_lora::{Patch, Patches, Site, SiteRole};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// The router `arrow`.
pub static ARROW: MethodInfo<dyn Router> = MethodInfo {
    name: "arrow",
    aliases: &[],
    summary: "per token, the experts whose top singular vector aligns with it; an expert whose delta is zero at a \
              projection is no candidate there",
    link: Some("https://arxiv.org/abs/2405.11157"),
    defaults: defaults::<Arrow>,
    parse: |name, typed| Ok(Arc::new(read::<Arrow>(name, typed)?)),
    version: 1,
};

/// The router `arrow`. With the defaults of `mixing` and `tie` it is PEFT's, with exact prototypes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Arrow {
    /// The number of experts of each token; if a site has fewer candidates, all of them.
    pub top_k: Limit,
    /// The temperature of the softmax over scores.
    pub temperature: f32,
    /// How the chosen experts' deltas are combined.
    pub mixing: Mixing,
    /// Whether the projections of a site share a prototype.
    pub tie: PrototypeScope,
    /// Experts of general knowledge, which is subtracted from the others first; no token is routed to them.
    pub general: GeneralExperts,
    /// How it is subtracted.
    pub gks: SubtractionSpace,
}

impl Default for Arrow {
    fn default() -> Self {
        Self {
            top_k: Limit(4),
            temperature: 1.0,
            mixing: Mixing::Outputs,
            tie: PrototypeScope::Projection,
            general: GeneralExperts::default(),
            gks: SubtractionSpace::Factors,
        }
    }
}

impl Settings for Arrow {
    fn validate(&self) -> Result<(), String> {
        above_zero("temperature", self.temperature)
    }
}

impl fmt::Display for Arrow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // The subtraction is left out if there is none: the text is that of older versions, which caches are keyed by.
        let subtracts = !self.general.is_empty();
        let shown = to_pairs(self)
            .map_err(|_| fmt::Error)?
            .into_iter()
            .filter(|(key, _)| subtracts || !matches!(*key, "general" | "gks"));
        write!(f, "{}:{}", ARROW.name, joined(shown))
    }
}

impl Router for Arrow {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &ARROW
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// # Errors
    /// Under separate mixing, if ranks differ at a projection; with `tie=site`, if an expert's A's do; if a general
    /// expert is not in the library, or cannot be subtracted.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        if !self.general.is_empty() {
            let rest = Self { general: GeneralExperts::default(), ..self.clone() };
            return rest.patches(&subtracted(experts, &self.general, self.gks)?, context);
        }
        site_patches(experts, |index, site, stack| {
            self.site_patch(experts, (index, site, stack), context.observer_at(site))
        })
    }
}

impl Arrow {
    /// The patch of one site, given with its index and its stack; general experts are not subtracted. None if no expert
    /// has a direction there.
    ///
    /// # Errors
    /// As of [`Arrow`]'s patches.
    pub(crate) fn site_patch(
        &self,
        experts: &LibraryStack,
        (index, site, stack): (usize, &Site, &Stack),
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Option<Arc<dyn Patch>>> {
        if site.role == SiteRole::Embedding {
            return uniform_patch(self.mixing, experts, site, stack);
        }
        let routing = self.routing(experts, (index, site, stack), observer)?;
        Ok(routing.map(|routing| Arc::new(routing) as Arc<dyn Patch>))
    }

    /// The same for a site whose inputs have a direction: all but an embedding.
    ///
    /// # Errors
    /// As of [`Arrow`]'s patches.
    pub(crate) fn routing(
        &self,
        experts: &LibraryStack,
        (index, site, stack): (usize, &Site, &Stack),
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Option<TokenRouting>> {
        let Prototypes { vectors, candidates } = prototypes(experts, site, &self.tie.groups(site))?;
        let choices = choices_in_order(self.tie.groups(site), candidates, experts.len(), ScoreSign::Ignored);
        if choices.is_empty() {
            return Ok(None);
        }
        let rows = vectors.len() / site.input;
        Ok(Some(TokenRouting {
            config: TopKConfig { top_k: self.top_k.0, temperature: self.temperature, input: InputNorm::Raw },
            site: index,
            experts: experts.len(),
            scorer: ExpertScorer::Vectors(Tensor::from_vec(vectors, (rows, site.input), stack.device())?),
            choices,
            mixture: Mixture::new(self.mixing, self.scope(), experts, site, stack)?,
            per_token: OnceLock::new(),
            observer,
        }))
    }

    fn scope(&self) -> RoutingScope {
        match self.tie {
            PrototypeScope::Projection => RoutingScope::Projection,
            PrototypeScope::Site => RoutingScope::Site,
        }
    }
}
