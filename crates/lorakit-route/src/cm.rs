//! Centroid matching: a token goes to the experts whose training inputs it resembles
//! (CM of Ostapenko et al. 2024, <https://arxiv.org/abs/2405.11157>, section 4.2; Jang et al. 2023,
//! <https://arxiv.org/abs/2302.03202>).
//!
//! The centroid `c_e` of an expert at a site is the mean input of the site over rows of the expert's own tasks, the
//! expert at work, divided by its length. A token `x` of `d` features scores each expert by `<x, c_e> / √d` (the papers'
//! code) or by `<x, c_e> / |x|` (their text), and a softmax over the `top_k` highest weighs them.
//!
//! Learned: for each site `SITE`, as `3.qkv`, the matrix `SITE`, `[experts, in]`, of centroids; a row of zeros where an
//! expert has nothing at the site.

use crate::error::{Result, adapter};
use crate::experts::Experts;
use crate::gate::signed_gates;
use crate::inputs::{Inputs, Pool};
use crate::learned::{Learned, Lesson};
use crate::mixing::{Mixing, Mixture};
use crate::observer::Observer;
use crate::patches;
use crate::per_token::{PerToken, Reading, Rule};
use crate::settings::{AtMost, Settings};
use crate::stack::Choice;
use candle_core::Tensor;
use lorakit_adapter::Matrix;
use lorakit_lora::Patches;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

/// The router `cm`. The defaults are those of the papers' code, except that outputs are mixed.
#[derive(Clone, Debug, PartialEq)]
pub struct Cm {
    /// How many experts each token has at most.
    pub top_k: AtMost,
    /// What the scores are divided by before the softmax.
    pub temperature: f32,
    /// How a token is compared with a centroid.
    pub score: Score,
    /// What of a row its centroid is the mean of.
    pub pool: Pool,
    /// How many rows of each task are learned from.
    pub rows: AtMost,
    /// How the chosen experts' deltas become one.
    pub mixing: Mixing,
}

impl Default for Cm {
    fn default() -> Self {
        Self {
            top_k: AtMost::ALL,
            temperature: 1.0,
            score: Score::Dot,
            pool: Pool::Last,
            rows: AtMost(10),
            mixing: Mixing::Outputs,
        }
    }
}

/// How a token is compared with a centroid.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Score {
    /// `<x, c> / √d`.
    #[default]
    Dot,
    /// `<x, c> / |x|`.
    Cosine,
}

impl FromStr for Score {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "dot" => Ok(Self::Dot),
            "cosine" => Ok(Self::Cosine),
            _ => Err("dot or cosine"),
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Dot => "dot",
            Self::Cosine => "cosine",
        })
    }
}

impl fmt::Display for Cm {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { top_k, temperature, score, pool, rows, mixing } = self;
        write!(f, "top_k={top_k},temperature={temperature},score={score},pool={pool},rows={rows},mixing={mixing}")
    }
}

impl Cm {
    pub(crate) fn parse(mut settings: Settings) -> Result<Self> {
        let default = Self::default();
        let cm = Self {
            top_k: settings.take("top_k", default.top_k),
            temperature: settings.temperature(default.temperature),
            score: settings.take("score", default.score),
            pool: settings.take("pool", default.pool),
            rows: settings.take("rows", default.rows),
            mixing: settings.take("mixing", default.mixing),
        };
        settings.finish().map(|()| cm)
    }

    /// Rows of the experts' own tasks.
    pub fn lesson(&self) -> Lesson {
        Lesson::Experts { rows: self.rows.0 }
    }

    /// The centroids from what `inputs` recorded of the experts' rows.
    ///
    /// # Errors
    /// Where an expert had no row.
    pub fn learned(&self, experts: &Experts, inputs: &Inputs) -> Result<Learned> {
        let centroids = experts.stacks().map(|(index, site, _)| {
            let mut means = inputs.means(index, experts)?;
            for mean in means.chunks_exact_mut(site.input) {
                let length = mean.iter().map(|m| m * m).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
                mean.iter_mut().for_each(|m| *m /= length);
            }
            let centroids = means.into_iter().map(|m| m as f32).collect();
            Ok((site.key(), Matrix::new(experts.len(), site.input, centroids).map_err(adapter)?))
        });
        Ok(Learned::new(centroids.collect::<Result<Vec<_>>>()?))
    }

    /// The patches of a library whose centroids were learned; `observer`, if any, is shown every choice.
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
            let centroids = learned.matrix(&site.key(), (experts.len(), site.input))?.values();
            let (reading, divisor) = match self.score {
                Score::Dot => (Reading::AsIs, (site.input as f32).sqrt()),
                Score::Cosine => (Reading::Unit, 1.0),
            };
            let (vectors, gates) = signed_gates(&centroids, experts, site);
            if gates.is_empty() {
                return Ok(None);
            }
            let rows = vectors.len() / site.input;
            Ok(Some(Arc::new(PerToken {
                rule: Rule { top_k: self.top_k.0, temperature: self.temperature * divisor, reading },
                site: index,
                experts: experts.len(),
                vectors: Tensor::from_vec(vectors, (rows, site.input), stack.a().device())?,
                gates,
                mixture: Mixture::new(self.mixing, Choice::Projection, experts, site, stack)?,
                weighed: OnceLock::new(),
                observer: observer.clone(),
            })))
        })
    }
}
