//! Random experts: at every site each token gets `top_k` experts drawn at random, at weight `1 / top_k`. A router that does
//! not beat it has gained nothing by its choice, however far it is above the mean of all experts, which is shorter.
//!
//! What is drawn depends on the seed, the site and the token's position in its row alone, so that batches, shared prefixes
//! and cached decoding change nothing.
//! All rows draw alike: another draw needs another `seed`, and differences between rows do not show its spread.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use crate::mixing::{Mixing, Mixture};
use crate::observer::{Observer, RoutingDecision};
use crate::router::{Router, RouterContext};
use crate::site_patches::site_patches;
use crate::stack::RoutingScope;
use candle_core::Tensor;
use lorakit_format::rng::{CounterRng, Key};
use lorakit_lora::{Addition, Outputs, Patch, Patches, SequenceBatch, TokenGroup, TokenSelection};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// The router `random`.
pub static RANDOM: MethodInfo<dyn Router> = MethodInfo {
    name: "random",
    aliases: &[],
    summary: "per token and site, experts drawn at random; a baseline for routers of few experts",
    link: None,
    defaults: defaults::<RandomExperts>,
    parse: |name, typed| Ok(Arc::new(read::<RandomExperts>(name, typed)?)),
    version: 1,
};

/// The router `random`. An expert that a site lacks may be drawn there, and adds nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomExperts {
    /// The number of experts of each token.
    pub top_k: Limit,
    /// The seed of the draws.
    pub seed: u64,
    /// How the drawn experts' deltas are combined.
    pub mixing: Mixing,
}

impl Default for RandomExperts {
    fn default() -> Self {
        Self { top_k: Limit(4), seed: 0, mixing: Mixing::Outputs }
    }
}

impl Settings for RandomExperts {}

impl fmt::Display for RandomExperts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, RANDOM.name, self)
    }
}

impl Router for RandomExperts {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &RANDOM
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// # Errors
    /// Under separate mixing, if ranks differ at a projection.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        site_patches(experts, |index, site, stack| {
            Ok(Some(Arc::new(RandomPatch {
                mixture: Mixture::new(self.mixing, RoutingScope::Site, experts, site, stack)?,
                experts: experts.len(),
                top_k: self.top_k.0.min(experts.len()),
                key: Key::new(self.seed, "random experts").text(&site.key()).bits(),
                site: index,
                projections: 0..site.projections.len(),
                observer: context.observer_at(site),
            }) as Arc<dyn Patch>))
        })
    }
}

struct RandomPatch {
    mixture: Mixture,
    experts: usize,
    top_k: usize,
    /// The key of the site's draws, one stream for each position.
    key: [u8; 32],
    site: usize,
    projections: Range<usize>,
    observer: Option<Arc<dyn Observer>>,
}

impl RandomPatch {
    /// The experts of the token at a position, all different (Floyd's draw without replacement).
    fn draw(&self, position: u32) -> Vec<u32> {
        let mut stream = CounterRng::substream(self.key, position.into());
        let mut drawn = Vec::with_capacity(self.top_k);
        for last in self.experts - self.top_k..self.experts {
            let expert = stream.below(last + 1) as u32;
            drawn.push(if drawn.contains(&expert) { last as u32 } else { expert });
        }
        drawn
    }
}

impl Patch for RandomPatch {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        self.begin(x, rows)?(out)
    }

    fn begin<'a>(&'a self, x: &'a Tensor, rows: &'a SequenceBatch) -> candle_core::Result<Addition<'a>> {
        let chosen: Vec<u32> = rows.positions().into_iter().flat_map(|position| self.draw(position)).collect();
        let weight = 1.0 / self.top_k as f32;
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); self.experts];
        for (token, experts) in chosen.chunks_exact(self.top_k).enumerate() {
            experts.iter().for_each(|expert| tokens[*expert as usize].push(token as u32));
        }
        if let Some(observer) = &self.observer {
            let weights = vec![weight; chosen.len()];
            observer.observe(&RoutingDecision {
                site: self.site,
                projections: self.projections.clone(),
                rows,
                per_token: self.top_k,
                experts: &chosen,
                weights: &weights,
            });
        }
        let used = tokens.into_iter().enumerate().filter(|(_, tokens)| !tokens.is_empty());
        let groups: Vec<TokenGroup> = used
            .map(|(expert, tokens)| {
                let weights = Some(vec![weight; tokens.len()]);
                TokenGroup { expert, tokens: TokenSelection::Indices(tokens), weights }
            })
            .collect();
        self.mixture.begin(x, groups.into())
    }
}
