//! PHATGOOSE: each expert comes with gates that were trained to let it through where it helps
//! (Muqeeth et al. 2024, <https://arxiv.org/abs/2402.05859>).
//!
//! Training, expert by expert, base and adapter frozen: at each site a vector `v_e` of the input's width, zero at first,
//! scales what the expert adds, `out += σ(<v_e, x>) s B A x`, and descends the loss on the expert's own tasks.
//! Routing: with `x̂` and `v̂` standardised feature by feature (LayerNorm without gain and bias) a token scores each expert
//! by `<x̂, v̂_e> / √d`; a softmax over the `top_k` highest weighs them.
//!
//! Learned: for each site `SITE`, as `3.qkv`, the matrix `SITE`, `[experts, in]`, of gate vectors; a row of zeros where an
//! expert has nothing at the site.

use crate::error::{Result, RouteError};
use crate::experts::Experts;
use crate::gate::signed_gates;
use crate::learned::{Learned, Lesson};
use crate::mixing::{Mixing, Mixture};
use crate::observer::Observer;
use crate::patches;
use crate::per_token::{PerToken, Reading, Rule};
use crate::settings::{AtMost, Settings};
use crate::stack::Choice;
use candle_core::{Tensor, bail};
use lorakit_lora::{GroupedLora, Outputs, Patch, Patches, SequenceBatch, TokenGroup, TokenSelection};
use std::fmt;
use std::sync::{Arc, OnceLock};

/// The router `phatgoose`. The defaults are those of the code of <https://arxiv.org/abs/2405.11157>.
#[derive(Clone, Debug, PartialEq)]
pub struct Phatgoose {
    /// How many experts each token has at most.
    pub top_k: AtMost,
    /// What the scores are divided by before the softmax.
    pub temperature: f32,
    /// Steps of training.
    pub steps: usize,
    /// The highest learning rate; a tenth of the steps warms up, then it falls linearly.
    pub learning_rate: f64,
    /// Rows of each expert and step.
    pub batch_size: usize,
    /// How many rows of each task are learned from.
    pub rows: AtMost,
    /// How the chosen experts' deltas become one.
    pub mixing: Mixing,
}

impl Default for Phatgoose {
    fn default() -> Self {
        Self {
            top_k: AtMost(2),
            temperature: 1.0,
            steps: 100,
            learning_rate: 1e-3,
            batch_size: 4,
            rows: AtMost::ALL,
            mixing: Mixing::Outputs,
        }
    }
}

impl fmt::Display for Phatgoose {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { top_k, temperature, steps, learning_rate, batch_size, rows, mixing } = self;
        write!(
            f,
            "top_k={top_k},temperature={temperature},steps={steps},learning_rate={learning_rate},\
             batch_size={batch_size},rows={rows},mixing={mixing}"
        )
    }
}

impl Phatgoose {
    pub(crate) fn parse(mut settings: Settings) -> Result<Self> {
        let default = Self::default();
        let phatgoose = Self {
            top_k: settings.take("top_k", default.top_k),
            temperature: settings.temperature(default.temperature),
            steps: settings.at_least_one("steps", default.steps),
            learning_rate: settings.take("learning_rate", default.learning_rate),
            batch_size: settings.at_least_one("batch_size", default.batch_size),
            rows: settings.take("rows", default.rows),
            mixing: settings.take("mixing", default.mixing),
        };
        if !(phatgoose.learning_rate > 0.0 && phatgoose.learning_rate.is_finite()) {
            settings.refuse(format!("learning_rate={} must be a number above zero", phatgoose.learning_rate));
        }
        settings.finish().map(|()| phatgoose)
    }

    /// Rows of the experts' own tasks.
    pub fn lesson(&self) -> Lesson {
        Lesson::Experts { rows: self.rows.0 }
    }

    /// The patches of a library whose gates were learned; `observer`, if any, is shown every choice.
    ///
    /// # Errors
    /// Where what was learned is of another library; under separate mixing, where ranks differ at a projection.
    pub fn patches(
        &self,
        experts: &Experts,
        learned: &Learned,
        observer: Option<Arc<dyn Observer>>,
    ) -> Result<Patches> {
        patches(experts, |index, site, stack| {
            let (n, width, device) = (experts.len(), site.input, stack.a().device());
            let raw = learned.matrix(&site.key(), (n, width))?.values().into_owned();
            let gates = Reading::Standardised.of(&Tensor::from_vec(raw, (n, width), device)?)?;
            let (vectors, gates) = signed_gates(&gates.flatten_all()?.to_vec1::<f32>()?, experts, site);
            if gates.is_empty() {
                return Ok(None);
            }
            let rows = vectors.len() / width;
            let temperature = self.temperature * (width as f32).sqrt();
            Ok(Some(Arc::new(PerToken {
                rule: Rule { top_k: self.top_k.0, temperature, reading: Reading::Standardised },
                site: index,
                experts: n,
                vectors: Tensor::from_vec(vectors, (rows, width), device)?,
                gates,
                mixture: Mixture::new(self.mixing, Choice::Projection, experts, site, stack)?,
                weighed: OnceLock::new(),
                observer: observer.clone(),
            })))
        })
    }
}

/// Patches under which gates train: each row has the expert that it names, scaled by its gate. `gates` has, for each site
/// that the library touches, in order, the gate vectors of all experts, `[experts, in]`.
///
/// # Errors
/// Where there are not as many gates as touched sites.
pub fn gated(experts: &Experts, gates: &[Tensor]) -> Result<Patches> {
    let places: Vec<usize> = experts.stacks().map(|(index, _, _)| index).collect();
    patches(experts, |index, site, stack| {
        let place = places.iter().position(|place| *place == index);
        let gates = place.and_then(|place| gates.get(place)).ok_or_else(|| RouteError::Learned {
            name: site.key(),
            expected: (experts.len(), site.input),
            found: None,
        })?;
        let grouped = stack.grouped(stack.layouts(Choice::Projection))?;
        let (experts, projections) = (experts.len(), site.projections.len());
        Ok(Some(Arc::new(Gated { gates: gates.clone(), grouped, experts, projections })))
    })
}

struct Gated {
    gates: Tensor,
    grouped: GroupedLora,
    experts: usize,
    projections: usize,
}

impl Patch for Gated {
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
