//! LoraHub: one weight for each expert, found from a few rows of a task without gradients
//! (Huang et al. 2023, <https://arxiv.org/abs/2307.13269>).
//!
//! Two modes. `as-published` is what the authors' code does, see [`published`]. The default, [`greedy`], mixes the deltas,
//! so that a weight is the strength of an expert and nothing else, and trusts only rows that it was not fitted to: on
//! five rows a lower loss often is a worse adapter.
//!
//! The crate sees no model: whoever has one answers with [`RowLosses`].
//!
//! Learned: `weights`, `[1, experts]`.

mod greedy;
mod published;

use crate::error::{Result, RouteError};
use crate::experts::Experts;
use crate::held_out::HeldOut;
use crate::merge::{Coefficients, Merge};
use crate::mixing::Mixing;
use crate::settings::Settings;
use crate::weighed::by_weights;
use lorakit_adapter::Matrix;
use lorakit_lora::Patches;
use std::fmt;
use std::str::FromStr;

/// The router and the merge `lorahub`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraHub {
    /// How the weights are found, and what they weigh.
    pub mode: Mode,
    /// How many rows are learned from.
    pub rows: usize,
}

/// How weights are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Best single experts, to which others are added while rows that were left out gain.
    Greedy {
        /// The most experts that are mixed.
        experts: usize,
    },
    /// As in the authors' code.
    AsPublished {
        /// Evaluations of the loss.
        budget: usize,
    },
}

impl Mode {
    const GREEDY: Self = Self::Greedy { experts: 3 };

    fn name(self) -> Name {
        match self {
            Self::Greedy { .. } => Name::Greedy,
            Self::AsPublished { .. } => Name::AsPublished,
        }
    }
}

/// A mode as it is typed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Name {
    Greedy,
    AsPublished,
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "greedy" => Ok(Self::Greedy),
            "as-published" => Ok(Self::AsPublished),
            _ => Err("greedy or as-published"),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Greedy => "greedy",
            Self::AsPublished => "as-published",
        })
    }
}

impl Default for LoraHub {
    fn default() -> Self {
        Self { mode: Mode::GREEDY, rows: 5 }
    }
}

impl fmt::Display for LoraHub {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "mode={},rows={}", self.mode.name(), self.rows)?;
        match self.mode {
            Mode::Greedy { experts } => write!(f, ",experts={experts}"),
            Mode::AsPublished { budget } => write!(f, ",budget={budget}"),
        }
    }
}

/// The loss of one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowLoss {
    /// The sum of the negative log-likelihoods of its target tokens.
    pub sum: f64,
    /// The number of these tokens.
    pub tokens: usize,
}

impl RowLoss {
    fn mean(self) -> f64 {
        self.sum / self.tokens.max(1) as f64
    }
}

/// What the search asks of whoever has a model and rows.
pub trait RowLosses {
    /// For each candidate, which has one weight per expert, the loss of every row under [`LoraHub::mixing`].
    ///
    /// # Errors
    /// Where the model cannot say.
    fn losses(&mut self, candidates: &[Vec<f64>]) -> anyhow::Result<Vec<Vec<RowLoss>>>;

    /// For every row, the slopes of its mean loss along each expert's weight, at the weights `at`; asked for only where
    /// outputs are mixed.
    ///
    /// # Errors
    /// Where the model cannot say.
    fn slopes(&mut self, at: &[f64]) -> anyhow::Result<Vec<Vec<f64>>>;
}

/// Weights with what is known of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// One for each expert.
    pub weights: Vec<f64>,
    /// The mean loss of the rows that the weights were fitted to: it says how well they fit, not how good they are.
    pub fitted: f64,
    /// The same with no expert.
    pub base: f64,
    /// What rows say that were left out of the fit.
    pub held_out: Option<HeldOut>,
    /// How often the rows were evaluated.
    pub evaluations: usize,
}

impl LoraHub {
    pub(crate) fn parse(mut settings: Settings) -> Result<Self> {
        let default = Self::default();
        let mode = settings.take("mode", Name::Greedy);
        let rows = settings.at_least_one("rows", default.rows);
        let mode = match mode {
            Name::Greedy => Mode::Greedy { experts: settings.at_least_one("experts", 3) },
            Name::AsPublished => Mode::AsPublished { budget: settings.at_least_one("budget", 40) },
        };
        settings.finish().map(|()| Self { mode, rows })
    }

    /// What a weight multiplies: the delta, or A and B each.
    pub fn mixing(&self) -> Mixing {
        match self.mode {
            Mode::Greedy { .. } => Mixing::Outputs,
            Mode::AsPublished { .. } => Mixing::Separate,
        }
    }

    /// Finds a weight for each of `experts`; the same answers give the same weights.
    ///
    /// # Errors
    /// As published, where the experts cannot be mixed so: see [`published`]; and what the model answers with.
    pub fn find(&self, experts: &Experts, losses: &mut dyn RowLosses) -> anyhow::Result<Found> {
        match self.mode {
            Mode::Greedy { experts: most } => greedy::find(experts.len(), most, losses),
            Mode::AsPublished { budget } => {
                self.check(experts)?;
                published::find(experts.len(), budget, losses)
            }
        }
    }

    /// Refuses experts that cannot be weighed so.
    ///
    /// # Errors
    /// As published, where modules, ranks or scales differ.
    pub fn check(&self, experts: &Experts) -> Result<()> {
        match self.mode {
            Mode::Greedy { .. } => Ok(()),
            Mode::AsPublished { .. } => published::check(experts),
        }
    }

    /// The patches that carry learned weights out, `[1, experts]`.
    ///
    /// # Errors
    /// Where the weights are of another library; as published, where ranks differ at a projection.
    pub fn patches(&self, experts: &Experts, weights: &Matrix) -> Result<Patches> {
        self.weights(experts, weights)?;
        by_weights(experts, self.mixing(), &weights.values())
    }

    /// Learned weights, `[1, experts]`, one by one.
    ///
    /// # Errors
    /// Where they are of another library.
    pub fn weights(&self, experts: &Experts, weights: &Matrix) -> Result<Vec<f64>> {
        let (found, expected) = ((weights.rows(), weights.cols()), (1, experts.len()));
        if found != expected {
            return Err(RouteError::Learned { name: "weights".to_owned(), expected, found: Some(found) });
        }
        Ok(weights.values().iter().map(|weight| f64::from(*weight)).collect())
    }

    /// The merge that makes one adapter of experts and weights: the exact sum of deltas, or, as published, the sum of
    /// A's times the sum of B's.
    ///
    /// # Errors
    /// None that a user can cause.
    pub fn merge(&self, weights: &[f64]) -> crate::merge::Result<(Merge, Coefficients)> {
        let merge = match self.mixing() {
            Mixing::Outputs => Merge::Cat,
            Mixing::Separate => "linear:convention=paper".parse()?,
        };
        Ok((merge, Coefficients::new(weights.to_vec())))
    }
}
