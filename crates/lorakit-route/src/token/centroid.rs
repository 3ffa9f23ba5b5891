//! Centroid matching: a token goes to the experts whose training inputs it resembles
//! (CM of Ostapenko et al. 2024, <https://arxiv.org/abs/2405.11157>, section 4.2; Jang et al. 2023,
//! <https://arxiv.org/abs/2302.03202>).
//!
//! The centroid `c_e` of an expert at a site is the mean input of the site over rows of the expert's own tasks, with the
//! expert applied, divided by its length. A token `x` of `d` features scores each expert by `<x, c_e> / √d` (the papers'
//! code) or by `<x, c_e> / |x|` (their text), and a softmax over the `top_k` highest weighs them.
//!
//! State: for each site `SITE`, as `3.qkv`, the matrix `SITE`, `[experts, in]`, of centroids; a row of zeros if an expert
//! has nothing at the site.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, above_zero, defaults, read, write};
use crate::mixing::Mixing;
use crate::router::{Router, RouterContext};
use crate::router_state::RouterState;
use crate::token::fitted_vectors::FittedVectors;
use crate::token::input_means::{InputMeans, Pooling};
use crate::token::input_norm::InputNorm;
use crate::token::token_routing::TopKConfig;
use crate::training_data::TrainingData;
use lorakit_adapter::Matrix;
use lorakit_lora::Patches;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `cm`.
pub static CM: MethodInfo<dyn Router> = MethodInfo {
    name: "cm",
    aliases: &[],
    summary: "per token, the experts whose training inputs it resembles; learns centroids",
    link: Some("https://arxiv.org/abs/2405.11157"),
    defaults: defaults::<Centroid>,
    parse: |name, typed| Ok(Arc::new(read::<Centroid>(name, typed)?)),
    version: 2,
};

/// The router `cm`. The defaults are those of the papers' code, except that outputs are mixed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Centroid {
    /// The maximum number of experts of each token.
    pub top_k: Limit,
    /// The temperature of the softmax over scores.
    pub temperature: f32,
    /// How a token is compared with a centroid.
    pub score: CentroidScore,
    /// The tokens of a row that its centroid is the mean of.
    pub pool: Pooling,
    /// The maximum number of rows of each task that centroids are computed from.
    pub rows: Limit,
    /// How the chosen experts' deltas are combined.
    pub mixing: Mixing,
}

impl Default for Centroid {
    fn default() -> Self {
        Self {
            top_k: Limit::ALL,
            temperature: 1.0,
            score: CentroidScore::Dot,
            pool: Pooling::Last,
            rows: Limit(10),
            mixing: Mixing::Outputs,
        }
    }
}

/// How a token is compared with a centroid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CentroidScore {
    /// `<x, c> / √d`.
    #[default]
    Dot,
    /// `<x, c> / |x|`.
    Cosine,
}

impl Settings for Centroid {
    fn validate(&self) -> Result<(), String> {
        above_zero("temperature", self.temperature)
    }
}

impl fmt::Display for Centroid {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, CM.name, self)
    }
}

impl Router for Centroid {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &CM
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// # Errors
    /// If the state is missing, or was fitted to another library; under separate mixing, if ranks differ at a projection.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        let vectors = FittedVectors { state: context.state_of(self)?, norm: InputNorm::Raw, mixing: self.mixing };
        vectors.patches(experts, context, |width| {
            let (input, divisor) = match self.score {
                CentroidScore::Dot => (InputNorm::Raw, (width as f32).sqrt()),
                CentroidScore::Cosine => (InputNorm::Unit, 1.0),
            };
            TopKConfig { top_k: self.top_k.0, temperature: self.temperature * divisor, input }
        })
    }

    fn training_data(&self) -> Option<TrainingData> {
        Some(TrainingData::ExpertTasks { rows: self.rows.0 })
    }
}

impl Centroid {
    /// The centroids, from the means that `inputs` recorded of the experts' rows.
    ///
    /// # Errors
    /// If an expert had no row.
    pub fn state(&self, experts: &LibraryStack, inputs: &InputMeans) -> Result<RouterState> {
        let centroids = experts.stacks().map(|(index, site, _)| {
            let mut means = inputs.means(index, experts)?;
            for mean in means.chunks_exact_mut(site.input) {
                let length = mean.iter().map(|m| m * m).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
                mean.iter_mut().for_each(|m| *m /= length);
            }
            let centroids = means.into_iter().map(|m| m as f32).collect();
            Ok((site.key(), Matrix::new(experts.len(), site.input, centroids)?))
        });
        Ok(RouterState::new(centroids.collect::<Result<Vec<_>>>()?))
    }
}
