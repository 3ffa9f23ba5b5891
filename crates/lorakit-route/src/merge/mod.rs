//! Merges: several adapters and their weights, turned into one adapter.
//!
//! A merge is a pure function in weight space, module by module; it knows no base and no text. What it meant and what
//! it could keep at the rank of the result is in the report of [`Merged`]. [`MERGES`] lists them.
//!
//! ```
//! use lorakit_adapter::{Adapter, LowRank, Matrix};
//! use lorakit_route::Expert;
//! use lorakit_route::merge::{Coefficients, Merge};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let module = "model.layers.0.self_attn.q_proj";
//! let expert = |name: &str, a: [f32; 2], b: [f32; 2]| -> Result<Expert, Box<dyn std::error::Error>> {
//!     let update = LowRank::new(Matrix::new(1, 2, a.to_vec())?, Matrix::new(2, 1, b.to_vec())?, 2.0)?;
//!     Ok(Expert::new(name, Adapter::new([(module.to_string(), update)].into())))
//! };
//! let experts = [expert("first", [1., 0.], [1., 0.])?, expert("second", [0., 1.], [0., 3.])?];
//!
//! let sum: Merge = "cat".parse()?;
//! let merged = sum.apply(&experts, &Coefficients::new(vec![0.5, 1.0]))?;
//! assert_eq!(merged.adapter.modules()[module].delta(), [1., 0., 0., 6.]);
//!
//! // Of rank 1 only the larger direction is left: 36 of 37 parts of the squared norm.
//! let short: Merge = "svd:rank=1".parse()?;
//! let merged = short.apply(&experts, &Coefficients::new(vec![0.5, 1.0]))?;
//! assert!((merged.report[0].retained - 36. / 37.).abs() < 1e-12);
//! # Ok(())
//! # }
//! ```

mod aligned;
mod cat;
mod coefficients;
mod consensus;
mod error;
mod into_base;
mod merged;
mod module;
mod rank;
mod recipe;
mod sparsify;
mod svd;
mod task_vectors;
mod values;
mod wudi;

pub use aligned::{Basis, CoreSpace, Knots};
pub use coefficients::Coefficients;
pub use consensus::Election;
pub use error::{MergeError, Result};
pub use into_base::{Orientation, add_to_weight};
pub use merged::{Merged, ModuleReport};
pub use rank::Rank;
pub use recipe::Convention;
pub use svd::Svd;
pub use task_vectors::TaskVectors;
pub use wudi::Wudi;

use crate::error::listed;
use crate::experts::Expert;
use crate::router::About;
use crate::settings::Settings;
use module::{Footprint, each_module};
use std::fmt;
use std::str::FromStr;

/// A way to make one adapter of several. What it is called and what it may be set to is in [`MERGES`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Merge {
    /// The exact weighted sum, at the sum of ranks.
    Cat,
    /// The weighted sum, brought to a rank.
    Svd(Svd),
    /// Value by value, on deltas or on factors: linear, task arithmetic, TIES, DARE, pruning by magnitude.
    TaskVectors(TaskVectors),
    /// Value by value in the basis of Core Space.
    CoreSpace(CoreSpace),
    /// Value by value in the basis of KnOTS.
    Knots(Knots),
    /// The delta of least interference, in closed form.
    Wudi(Wudi),
}

/// All merges, in the order in which they are listed. Where a merge has conventions, the settings are those of the
/// first, and others may have other defaults.
pub const MERGES: &[About] = &[
    About {
        name: "cat",
        settings: "",
        summary: "the exact weighted sum of deltas, at the sum of ranks (https://arxiv.org/abs/2410.13025)",
    },
    About {
        name: "svd",
        settings: "rank=largest",
        summary: "the weighted sum of deltas, brought to a rank by its SVD",
    },
    About {
        name: "linear",
        settings: "convention=peft,scale=1",
        summary: "A and B summed separately, with cross terms; mergekit: the mean of deltas (https://arxiv.org/abs/2405.11157)",
    },
    About {
        name: "task_arithmetic",
        settings: "convention=paper,scale=1,rank=full",
        summary: "a multiple of the weighted sum of deltas (https://arxiv.org/abs/2212.04089)",
    },
    About {
        name: "ties",
        settings: "convention=peft,density=0.5,sign=total,scale=1",
        summary: "trim, elect signs, average what agrees: A and B separately; mergekit: deltas (https://arxiv.org/abs/2306.01708)",
    },
    About {
        name: "ties_svd",
        settings: "convention=peft,density=0.5,sign=total,scale=1,rank=largest",
        summary: "TIES on the deltas, brought to a rank (https://arxiv.org/abs/2306.01708)",
    },
    About {
        name: "dare_linear",
        settings: "convention=peft,density=0.5,seed=0,scale=1",
        summary: "drop at random, rescale, sum: A and B separately; mergekit, paper: deltas (https://arxiv.org/abs/2311.03099)",
    },
    About {
        name: "dare_linear_svd",
        settings: "convention=peft,density=0.5,seed=0,scale=1,rank=largest",
        summary: "the same on the deltas, brought to a rank (https://arxiv.org/abs/2311.03099)",
    },
    About {
        name: "dare_ties",
        settings: "convention=peft,density=0.5,sign=total,seed=0,scale=1",
        summary: "drop at random, rescale, then as TIES: A and B separately; mergekit, paper: deltas (https://arxiv.org/abs/2311.03099)",
    },
    About {
        name: "dare_ties_svd",
        settings: "convention=peft,density=0.5,sign=total,seed=0,scale=1,rank=largest",
        summary: "the same on the deltas, brought to a rank (https://arxiv.org/abs/2311.03099)",
    },
    About {
        name: "magnitude_prune",
        settings: "convention=peft,density=0.5,scale=1",
        summary: "keep the largest values, then sum: A and B separately; mergekit: deltas (https://huggingface.co/docs/peft)",
    },
    About {
        name: "magnitude_prune_svd",
        settings: "convention=peft,density=0.5,scale=1,rank=largest",
        summary: "the same on the deltas, brought to a rank (https://huggingface.co/docs/peft)",
    },
    About {
        name: "breadcrumbs",
        settings: "convention=mergekit,density=1,gamma=0.01,scale=1,rank=largest",
        summary: "drop the largest and the smallest of each delta, then sum (https://arxiv.org/abs/2312.06795)",
    },
    About {
        name: "breadcrumbs_ties",
        settings: "convention=mergekit,density=1,gamma=0.01,sign=total,scale=1,rank=largest",
        summary: "drop the largest and the smallest, elect signs, sum what agrees (https://arxiv.org/abs/2312.06795)",
    },
    About {
        name: "core_space",
        settings: "inner=ties,convention=peft,density=0.5,sign=total,scale=1,basis=deltas,rank=full",
        summary: "another merge in a common basis of outputs and inputs (https://arxiv.org/abs/2509.17786)",
    },
    About {
        name: "knots",
        settings: "inner=ties,convention=peft,density=0.5,sign=total,scale=1,rank=full",
        summary: "another merge in a common basis of outputs (https://arxiv.org/abs/2410.19735)",
    },
    About {
        name: "wudi",
        settings: "rank=full,tolerance=0.000001",
        summary: "the delta that interferes least with each expert's, in closed form (https://arxiv.org/abs/2503.08099)",
    },
];

impl Merge {
    /// Merges `experts`, each by its weight.
    ///
    /// The order of the experts matters only to rounding; their names do to what is drawn at random. A module that an
    /// expert lacks counts as zero. The result has the first expert's configuration and a plain `alpha / r` scale.
    ///
    /// # Errors
    /// Where there is nothing to merge, weights are not one finite number per expert, experts were made for different
    /// bases, or the method cannot mix their ranks. Each error names the expert and the module.
    pub fn apply(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        let each = |make: &(dyn Fn(&module::Module) -> Result<module::Made> + Sync)| {
            each_module(experts, coefficients, self.footprint(), make)
        };
        match self {
            Self::Cat => each(&cat::merge),
            Self::Svd(svd) => each(&|module| svd.merge(module)),
            Self::TaskVectors(merge) => {
                let cuts = merge.cuts(experts);
                each(&|module| merge.merge(module, &cuts))
            }
            Self::CoreSpace(core_space) => each(&|module| core_space.merge(module)),
            Self::Knots(knots) => each(&|module| knots.merge(module)),
            Self::Wudi(wudi) => each(&|module| wudi.merge(module)),
        }
    }

    /// The weights where none are given: one each for merges that average by themselves or have a scale, else `1/n`.
    pub fn default_coefficients(&self, experts: usize) -> Coefficients {
        let averages = match self {
            Self::Cat | Self::Svd(_) => false,
            Self::TaskVectors(merge) => merge.averages_by_itself(),
            Self::CoreSpace(CoreSpace { inner, .. }) | Self::Knots(Knots { inner, .. }) => inner.averages_by_itself(),
            Self::Wudi(_) => true,
        };
        if averages { Coefficients::ones(experts) } else { Coefficients::uniform(experts) }
    }

    /// One line for a user: name, settings with their defaults, what it does, and the paper.
    pub fn describe(&self) -> String {
        let name = self.name();
        MERGES.iter().find(|about| about.name == name).map_or_else(String::new, About::to_string)
    }

    /// What is typed for it, without settings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cat => "cat",
            Self::Svd(_) => "svd",
            Self::TaskVectors(merge) => merge.name(),
            Self::CoreSpace(_) => "core_space",
            Self::Knots(_) => "knots",
            Self::Wudi(_) => "wudi",
        }
    }

    fn footprint(&self) -> Footprint {
        match self {
            Self::TaskVectors(merge) => merge.footprint(),
            _ => Footprint::LowRank,
        }
    }
}

impl FromStr for Merge {
    type Err = MergeError;

    fn from_str(text: &str) -> Result<Self> {
        let (name, rest) = match text.split_once(':') {
            Some((name, rest)) => (name, Some(rest)),
            None => (text, None),
        };
        let mut settings = Settings::new(name, rest);
        let merge = match name {
            "cat" => Some(Self::Cat),
            "svd" => Some(Self::Svd(Svd { rank: settings.take("rank", Svd::default().rank) })),
            "core_space" => Some(Self::CoreSpace(CoreSpace::read(&mut settings))),
            "knots" => Some(Self::Knots(Knots::read(&mut settings))),
            "wudi" => Some(Self::Wudi(Wudi::read(&mut settings))),
            _ => TaskVectors::read(name, &mut settings).map(Self::TaskVectors),
        };
        let Some(merge) = merge else {
            let known = listed(MERGES.iter().map(|about| about.name));
            return Err(MergeError::UnknownMerge { name: name.to_owned(), known });
        };
        settings.finish().map_err(MergeError::of_settings)?;
        Ok(merge)
    }
}

impl fmt::Display for Merge {
    /// The merge with all its settings, as it can be typed.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Cat => f.write_str("cat"),
            Self::Svd(svd) => write!(f, "svd:rank={}", svd.rank),
            Self::TaskVectors(merge) => write!(f, "{}:{merge}", merge.name()),
            Self::CoreSpace(core_space) => write!(f, "core_space:{core_space}"),
            Self::Knots(knots) => write!(f, "knots:{knots}"),
            Self::Wudi(wudi) => write!(f, "wudi:{wudi}"),
        }
    }
}
