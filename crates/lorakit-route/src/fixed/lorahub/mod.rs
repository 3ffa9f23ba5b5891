//! LoraHub: one weight per expert, found from a few rows of a task without gradients
//! (Huang et al. 2023, <https://arxiv.org/abs/2307.13269>).
//!
//! There are two modes. `as-published` follows the authors' code, see [`published_search`]. The default,
//! [`greedy_search`], mixes deltas, so that a weight is simply the strength of an expert, and selects by held-out rows:
//! on five rows, a lower fitted loss often means a worse adapter.
//!
//! This crate has no model: the caller implements [`RowLosses`].
//!
//! State: `weights`, `[1, experts]`.

pub(crate) mod cobyla;
pub mod greedy_search;
pub mod published_search;
pub mod row_losses;

use crate::error::{Result, RouteError};
use crate::fixed::lorahub::row_losses::{RowLosses, Solution};
use crate::fixed::row_weights::by_weights;
use crate::library_stack::LibraryStack;
use crate::merge::coefficients::Coefficients;
use crate::merge::concatenation::Concatenation;
use crate::merge::fitted_merge::FittedMerge;
use crate::merge::merge_method::MergeMethod;
use crate::merge::task_vectors::TaskVectors;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, at_least_one, read_over, refused, text_of, typed_pairs};
use crate::mixing::Mixing;
use crate::router::{Router, RouterContext};
use crate::settings_text::{Pairs, to_pairs};
use crate::training_data::TrainingData;
use lorakit_adapter::Matrix;
use lorakit_lora::Patches;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `lorahub`.
pub static LORAHUB: MethodInfo<dyn Router> = MethodInfo {
    name: "lorahub",
    aliases: &[],
    summary: "a few experts, weighted by a few rows of the task; mode=as-published,budget=40: the authors' search",
    link: Some("https://arxiv.org/abs/2307.13269"),
    defaults: |_| settings_of(&LoraHub::default()),
    parse: |name, typed| Ok(Arc::new(LoraHub::read(name, typed)?)),
    version: 2,
};

/// The fitted merge `lorahub`.
pub static LORAHUB_MERGE: MethodInfo<dyn FittedMerge> = MethodInfo {
    name: "lorahub",
    aliases: &[],
    summary: "a few experts that lower the loss of held-out rows; mode=as-published,budget=40: the authors' search",
    link: Some("https://arxiv.org/abs/2307.13269"),
    defaults: |_| settings_of(&LoraHub::default()),
    parse: |name, typed| Ok(Arc::new(LoraHub::read(name, typed)?)),
    version: 2,
};

/// The router and the fitted merge `lorahub`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoraHub {
    /// How the weights are found and applied.
    pub mode: SearchMode,
    /// The number of rows that the weights are fitted to.
    pub rows: usize,
    /// Greedy search: the maximum number of experts in the mixture.
    pub experts: usize,
    /// As published: the number of loss evaluations.
    pub budget: usize,
}

/// How weights are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SearchMode {
    /// Starts from the best single experts and adds others as long as the loss of held-out rows falls.
    #[default]
    Greedy,
    /// As in the authors' code.
    AsPublished,
}

impl SearchMode {
    /// The name as it is typed.
    fn name(self) -> &'static str {
        match self {
            Self::Greedy => "greedy",
            Self::AsPublished => "as-published",
        }
    }

    /// The only mode that has the setting `key`; none if both have it, or neither.
    fn only_of(key: &str) -> Option<Self> {
        match key {
            "experts" => Some(Self::Greedy),
            "budget" => Some(Self::AsPublished),
            _ => None,
        }
    }

    /// Whether the mode has the setting `key`.
    fn has(self, key: &str) -> bool {
        Self::only_of(key).is_none_or(|only| only == self)
    }
}

impl Default for LoraHub {
    fn default() -> Self {
        Self { mode: SearchMode::Greedy, rows: 5, experts: 3, budget: 40 }
    }
}

impl Settings for LoraHub {
    fn validate(&self) -> Result<(), String> {
        at_least_one("rows", self.rows)?;
        at_least_one("experts", self.experts)?;
        at_least_one("budget", self.budget)
    }
}

impl fmt::Display for LoraHub {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", LORAHUB.name, settings_of(self))
    }
}

/// The settings of the mode.
fn shown(hub: &LoraHub) -> Result<Pairs, String> {
    Ok(to_pairs(hub)?.into_iter().filter(|(key, _)| hub.mode.has(key)).collect())
}

/// The settings of the mode, as they are typed.
fn settings_of(hub: &LoraHub) -> String {
    text_of(shown(hub))
}

impl Router for LoraHub {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &LORAHUB
    }

    fn mixing(&self) -> Mixing {
        match self.mode {
            SearchMode::Greedy => Mixing::Outputs,
            SearchMode::AsPublished => Mixing::Separate,
        }
    }

    /// # Errors
    /// If the state is missing, or was fitted to another library; as published, if ranks differ at a projection.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        let weights = context.state_of(self)?.matrix("weights", (1, experts.len()))?;
        by_weights(experts, self.mixing(), &weights.values())
    }

    fn training_data(&self) -> Option<TrainingData> {
        Some(TrainingData::TargetTask { rows: self.rows })
    }
}

impl FittedMerge for LoraHub {
    fn info(&self) -> &'static MethodInfo<dyn FittedMerge> {
        &LORAHUB_MERGE
    }

    fn rows(&self) -> usize {
        self.rows
    }

    fn check(&self, experts: &LibraryStack) -> Result<()> {
        match self.mode {
            SearchMode::Greedy => Ok(()),
            SearchMode::AsPublished => published_search::check(experts),
        }
    }

    /// The exact weighted sum of deltas or, as published, the weighted sum of B's times that of A's.
    fn merge(&self, experts: &LibraryStack, weights: &Matrix) -> Result<(Arc<dyn MergeMethod>, Coefficients)> {
        let (found, expected) = ((weights.rows(), weights.cols()), (1, experts.len()));
        if found != expected {
            return Err(RouteError::StateMismatch { name: "weights".to_owned(), expected, found: Some(found) });
        }
        let coefficients = Coefficients::new(weights.values().iter().map(|weight| f64::from(*weight)).collect());
        let merge: Arc<dyn MergeMethod> = match self.mixing() {
            Mixing::Outputs => Arc::new(Concatenation),
            Mixing::Separate => Arc::new(TaskVectors::linear_of_paper()),
        };
        Ok((merge, coefficients))
    }
}

impl LoraHub {
    /// Reads the settings of the mode that is typed, or of the default one.
    ///
    /// # Errors
    /// As of [`read_over`]; and a setting of the other mode, which would have no effect.
    fn read(name: &str, typed: Option<&str>) -> Result<Self> {
        let pairs = typed_pairs(typed);
        let asked =
            pairs.iter().find(|(key, _)| *key == "mode").map_or(SearchMode::default().name(), |(_, mode)| *mode);
        let Some(mode) = [SearchMode::Greedy, SearchMode::AsPublished].into_iter().find(|mode| mode.name() == asked)
        else {
            // Fails at the mode.
            return read_over(name, &Self::default(), |_| true, typed);
        };
        let defaults = Self { mode, ..Self::default() };
        let mut only_in_one = pairs.iter().filter_map(|(key, _)| Some((key, SearchMode::only_of(key)?)));
        if let Some((key, other)) = only_in_one.find(|(_, only)| *only != mode) {
            let problem = format!("{key} is a setting of mode={}, not of mode={}", other.name(), mode.name());
            return Err(refused(name, shown(&defaults), problem));
        }
        read_over(name, &defaults, |key| mode.has(key), typed)
    }

    /// Finds a weight for each of `experts`; deterministic for given losses.
    ///
    /// # Errors
    /// As published, if the experts cannot be mixed that way (see [`published_search`]); and errors of the model.
    pub fn find(&self, experts: &LibraryStack, losses: &mut dyn RowLosses) -> Result<Solution> {
        match self.mode {
            SearchMode::Greedy => greedy_search::find(experts.len(), self.experts, losses),
            SearchMode::AsPublished => {
                published_search::check(experts)?;
                published_search::find(experts.len(), self.budget, losses)
            }
        }
    }
}
