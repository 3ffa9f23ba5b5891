//! PHATGOOSE: each expert comes with gates that were trained to open where it helps
//! (Muqeeth et al. 2024, <https://arxiv.org/abs/2402.05859>).
//!
//! Training, expert by expert, with base and adapter frozen: at each site a vector `v_e` of the input's width, initialized
//! to zero, scales what the expert adds, `out += σ(<v_e, x>) s B A x`, and minimizes the loss on the expert's own tasks.
//! Routing: with `x̂` and `v̂` standardized feature by feature (LayerNorm without gain and bias) a token scores each expert
//! by `<x̂, v̂_e> / √d`; a softmax over the `top_k` highest weighs them.
//!
//! State: for each site `SITE`, as `3.qkv`, the matrix `SITE`, `[experts, in]`, of gate vectors; a row of zeros if an
//! expert has nothing at the site.

use crate::error::{Result, RouteError};
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, above_zero, at_least_one, defaults, read, write};
use crate::mixing::Mixing;
use crate::router::{Router, RouterContext};
use crate::site_patches::site_patches;
use crate::stack::RoutingScope;
use crate::token::fitted_vectors::FittedVectors;
use crate::token::input_norm::InputNorm;
use crate::token::token_routing::TopKConfig;
use crate::training_data::TrainingData;
use candle_core::{Tensor, bail};
use lorakit_lora::{GroupedLora, Outputs, Patch, Patches, SequenceBatch, TokenGroup, TokenSelection};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `phatgoose`.
pub static PHATGOOSE: MethodInfo<dyn Router> = MethodInfo {
    name: "phatgoose",
    aliases: &[],
    summary: "per token, the experts whose trained gates open to it; learns gates",
    link: Some("https://arxiv.org/abs/2402.05859"),
    defaults: defaults::<Phatgoose>,
    parse: |name, typed| Ok(Arc::new(read::<Phatgoose>(name, typed)?)),
    version: 2,
};

/// The router `phatgoose`. The defaults are those of the code of <https://arxiv.org/abs/2405.11157>.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Phatgoose {
    /// The maximum number of experts of each token.
    pub top_k: Limit,
    /// The temperature of the softmax over scores.
    pub temperature: f32,
    /// The number of training steps of the gates.
    pub steps: usize,
    /// The peak learning rate; warmup takes a tenth of the steps, then the rate falls linearly.
    pub learning_rate: f64,
    /// The number of rows of each expert in a step.
    pub batch_size: usize,
    /// The maximum number of rows of each task.
    pub rows: Limit,
    /// How the chosen experts' deltas are combined.
    pub mixing: Mixing,
}

impl Default for Phatgoose {
    fn default() -> Self {
        Self {
            top_k: Limit(2),
            temperature: 1.0,
            steps: 100,
            learning_rate: 1e-3,
            batch_size: 4,
            rows: Limit::ALL,
            mixing: Mixing::Outputs,
        }
    }
}

impl Settings for Phatgoose {
    fn validate(&self) -> Result<(), String> {
        above_zero("temperature", self.temperature)?;
        at_least_one("steps", self.steps)?;
        at_least_one("batch_size", self.batch_size)?;
        above_zero("learning_rate", self.learning_rate)
    }
}

impl fmt::Display for Phatgoose {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, PHATGOOSE.name, self)
    }
}

impl Router for Phatgoose {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &PHATGOOSE
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// # Errors
    /// If the state is missing, or was fitted to another library; under separate mixing, if ranks differ at a projection.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        let norm = InputNorm::LayerNorm;
        let vectors = FittedVectors { state: context.state_of(self)?, norm, mixing: self.mixing };
        vectors.patches(experts, context, |width| {
            let temperature = self.temperature * (width as f32).sqrt();
            TopKConfig { top_k: self.top_k.0, temperature, input: norm }
        })
    }

    fn training_data(&self) -> Option<TrainingData> {
        Some(TrainingData::ExpertTasks { rows: self.rows.0 })
    }
}

/// Patches under which gates train: each row has the expert that it names, scaled by its gate. `gates` has, for each site
/// that the library touches in a layer, in order, the gate vectors of all experts, `[experts, in]`. Gates train without
/// what the experts change outside the layers.
///
/// # Errors
/// If there are fewer gates than touched sites.
pub fn gated_experts(experts: &LibraryStack, gates: &[Tensor]) -> Result<Patches> {
    let places: Vec<usize> = experts.stacks().map(|(index, _, _)| index).collect();
    site_patches(experts, |index, site, stack| {
        if site.layer.is_none() {
            return Ok(None);
        }
        let place = places.iter().position(|place| *place == index);
        let gates = place.and_then(|place| gates.get(place)).ok_or_else(|| RouteError::StateMismatch {
            name: site.key(),
            expected: (experts.len(), site.input),
            found: None,
        })?;
        let grouped = stack.grouped(stack.layout(RoutingScope::Projection))?;
        let (experts, projections) = (experts.len(), site.projections.len());
        Ok(Some(Arc::new(GatedExperts { gates: gates.clone(), grouped, experts, projections })))
    })
}

struct GatedExperts {
    gates: Tensor,
    grouped: GroupedLora,
    experts: usize,
    projections: usize,
}

impl Patch for GatedExperts {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let (mut groups, mut of_tokens) = (Vec::new(), Vec::new());
        for row in rows.iter() {
            let Some(expert) = row.expert.filter(|expert| *expert < self.experts) else {
                bail!("a row names the expert {:?} of {}", row.expert, self.experts);
            };
            groups.extend((0..self.projections).map(|projection| TokenGroup {
                expert: projection * self.experts + expert,
                tokens: TokenSelection::Contiguous(row.tokens()),
                weights: None,
            }));
            of_tokens.extend(std::iter::repeat_n(expert as u32, row.len));
        }
        let own = self.gates.index_select(&Tensor::from_slice(&of_tokens, of_tokens.len(), x.device())?, 0)?;
        // σ(z) by tanh, whose gradient does not overflow.
        let gate = ((((x * own)?.sum_keepdim(1)? * 0.5)?.tanh()? + 1.0)? * 0.5)?;
        out.add(&self.grouped.delta(x, groups.into())?.broadcast_mul(&gate)?)
    }
}
