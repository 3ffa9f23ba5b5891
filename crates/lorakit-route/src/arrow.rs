//! Arrow: each expert is looked for in the direction that it stretches most
//! (Ostapenko et al. 2024, <https://arxiv.org/abs/2405.11157>, algorithm 2).
//!
//! The prototype of an expert at a projection is the top right singular vector `v` of its delta `s B A`. A token `x`
//! scores each expert by `|<x, v>|`, keeps the `top_k` highest, and mixes those by a softmax over their scores.
//! What general experts know may be taken out of all others first: [`crate::gks`].

use crate::error::{Result, RouteError};
use crate::experts::Experts;
use crate::gate::{Counts, Gate};
use crate::gks::{General, Gks, subtracted};
use crate::mixing::{Mixing, Mixture};
use crate::observer::Observer;
use crate::patches;
use crate::per_token::{PerToken, Reading, Rule};
use crate::settings::{AtMost, Settings};
use crate::stack::Choice;
use candle_core::Tensor;
use lorakit_adapter::{LowRank, Matrix, SingularVector};
use lorakit_lora::{Patches, Site};
use rayon::prelude::*;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

/// The router `arrow`. With the defaults of `mixing` and `tie` it is PEFT's, with exact prototypes.
#[derive(Clone, Debug, PartialEq)]
pub struct Arrow {
    /// How many experts each token has; where a site has fewer candidates, all of them.
    pub top_k: AtMost,
    /// What the scores are divided by before the softmax.
    pub temperature: f32,
    /// How the chosen experts' deltas become one.
    pub mixing: Mixing,
    /// Whether the projections of a site share a prototype.
    pub tie: Tie,
    /// Experts of general knowledge, which is subtracted from the others first; they are not routed to.
    pub general: General,
    /// How it is subtracted.
    pub gks: Gks,
}

impl Default for Arrow {
    fn default() -> Self {
        Self {
            top_k: AtMost(4),
            temperature: 1.0,
            mixing: Mixing::Outputs,
            tie: Tie::None,
            general: General::default(),
            gks: Gks::Factors,
        }
    }
}

/// What has one prototype.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tie {
    /// Each projection, as PEFT has it: q, k and v route each for itself.
    #[default]
    None,
    /// Each site, from its stacked B's times the common A: the papers' where A is tied.
    Site,
}

impl FromStr for Tie {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "site" => Ok(Self::Site),
            _ => Err("none or site"),
        }
    }
}

impl fmt::Display for Tie {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Site => "site",
        })
    }
}

impl fmt::Display for Arrow {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "top_k={},temperature={},mixing={},tie={}", self.top_k, self.temperature, self.mixing, self.tie)?;
        // Left out where nothing is subtracted: what was typed is what is printed.
        if self.general.0.is_empty() { Ok(()) } else { write!(f, ",general={},gks={}", self.general, self.gks) }
    }
}

impl Arrow {
    pub(crate) fn parse(mut settings: Settings) -> Result<Self> {
        let default = Self::default();
        let arrow = Self {
            top_k: settings.take("top_k", default.top_k),
            temperature: settings.temperature(default.temperature),
            mixing: settings.take("mixing", default.mixing),
            tie: settings.take("tie", default.tie),
            general: settings.take("general", default.general),
            gks: settings.take("gks", default.gks),
        };
        settings.finish().map(|()| arrow)
    }

    /// The patches of a library; `observer`, if any, is shown every choice.
    ///
    /// # Errors
    /// Under separate mixing, where ranks differ at a projection; with `tie=site`, where an expert's A's do; where a
    /// general expert is none of the library's, or cannot be subtracted.
    pub fn patches(&self, experts: &Experts, observer: Option<Arc<dyn Observer>>) -> Result<Patches> {
        if !self.general.0.is_empty() {
            let rest = Self { general: General::default(), ..self.clone() };
            return rest.patches(&subtracted(experts, &self.general, self.gks)?, observer);
        }
        patches(experts, |index, site, stack| {
            let (directions, gates) = self.gates(experts, site)?;
            if gates.is_empty() {
                return Ok(None);
            }
            let rows = directions.len() / site.input;
            Ok(Some(Arc::new(PerToken {
                rule: Rule { top_k: self.top_k.0, temperature: self.temperature, reading: Reading::AsIs },
                site: index,
                experts: experts.len(),
                vectors: Tensor::from_vec(directions, (rows, site.input), stack.a().device())?,
                gates,
                mixture: Mixture::new(self.mixing, self.choice(), experts, site, stack)?,
                weighed: OnceLock::new(),
                observer: observer.clone(),
            })))
        })
    }

    fn choice(&self) -> Choice {
        match self.tie {
            Tie::None => Choice::Projection,
            Tie::Site => Choice::Site,
        }
    }

    /// The prototypes of a site by rows, `[candidates of all gates, in]`, and the gates that choose by them.
    fn gates(&self, experts: &Experts, site: &Site) -> Result<(Vec<f32>, Vec<Gate>)> {
        let (mut directions, mut gates) = (Vec::new(), Vec::new());
        for (place, projections) in self.tie.groups(site).into_iter().enumerate() {
            let start = directions.len() / site.input;
            let mut candidates = Vec::new();
            for (expert, prototype) in prototypes(experts, site, projections.clone())?.into_iter().enumerate() {
                if let Some(direction) = prototype {
                    directions.extend(direction.vector);
                    candidates.push(expert as u32);
                }
            }
            let columns = start..start + candidates.len();
            if !columns.is_empty() {
                let (first_slot, counts) = (place * experts.len(), Counts::Magnitude);
                gates.push(Gate { columns, candidates, first_slot, projections, counts });
            }
        }
        Ok((directions, gates))
    }
}

impl Tie {
    /// The projections of a site, by what has one prototype.
    pub fn groups(self, site: &Site) -> Vec<Range<usize>> {
        match self {
            Self::None => (0..site.projections.len()).map(|projection| projection..projection + 1).collect(),
            Self::Site => std::iter::once(0..site.projections.len()).collect(),
        }
    }
}

/// Each expert's prototype for some projections of a site: exact, from r x r problems in f64. None where the expert
/// has no delta there: it has no direction, and must not attract tokens.
///
/// # Errors
/// Where an expert's A's differ between the projections.
pub fn prototypes(experts: &Experts, site: &Site, projections: Range<usize>) -> Result<Vec<Option<SingularVector>>> {
    let prototype = |expert: usize| {
        let modules = site.projections[projections.clone()].iter().filter_map(|p| experts.module(expert, &p.module));
        let modules: Vec<&LowRank> = modules.collect();
        match modules.as_slice() {
            [] => Ok(None),
            [only] => Ok(only.top_singular_vector()),
            [first, rest @ ..] if rest.iter().all(|module| module.a() == first.a()) => {
                Ok(stacked(&modules)?.top_singular_vector())
            }
            _ => Err(RouteError::UntiedA { site: site.key(), expert: experts.names()[expert].clone() }),
        }
    };
    (0..experts.len()).into_par_iter().map(prototype).collect()
}

/// The one update of projections that share their A: their B's, each with its scale, one above the other.
fn stacked(modules: &[&LowRank]) -> Result<LowRank> {
    let scaled =
        |module: &&LowRank| module.b().values().iter().map(|b| b * module.scale() as f32).collect::<Vec<f32>>();
    let b: Vec<f32> = modules.iter().flat_map(scaled).collect();
    let rank = modules[0].rank();
    Matrix::new(b.len() / rank, rank, b)
        .and_then(|b| LowRank::new(modules[0].a().clone(), b, 1.0))
        .map_err(|error| RouteError::Adapter(format!("{error:#}")))
}
