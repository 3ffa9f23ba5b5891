//! Merges of task vectors, value by value: what [`RECIPES`] lists.
//!
//! - linear: PEFT's `A = sum sign(w s) sqrt|w s| A_i`, `B = sum sqrt|w s| B_i`; the paper's `A = sum w A_i`,
//!   `B = sum w s B_i` (<https://arxiv.org/abs/2405.11157>); mergekit's `sum w D_i / sum w`;
//! - task arithmetic: `scale * sum w D_i` (<https://arxiv.org/abs/2212.04089>);
//! - TIES: trim by magnitude, elect each value's sign, average those that agree (<https://arxiv.org/abs/2306.01708>);
//! - DARE: drop at random, rescale, then as one of the above (<https://arxiv.org/abs/2311.03099>);
//! - breadcrumbs: drop the largest as well (<https://arxiv.org/abs/2312.06795>).

use super::consensus::{Election, divisor, merge_row};
use super::error::{MergeError, Result};
use super::merged::Kept;
use super::module::{Footprint, Made, Module, Part};
use super::rank::Rank;
use super::recipe::{Consensus, Convention, Divide, RECIPES, Recipe, Scope, Share, Space, Sparsify};
use super::sparsify::{Amount, Mask, cut};
use super::svd::{Product, compress};
use super::values::Values;
use crate::error::listed;
use crate::experts::Expert;
use crate::settings::Settings;
use faer::MatRef;
use rayon::prelude::*;
use std::fmt;

/// A merge that works value by value, with its settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskVectors {
    recipe: &'static Recipe,
    /// The share of values that each expert keeps, above 0 and up to 1.
    pub density: f64,
    /// The share of values that are dropped as outliers (breadcrumbs).
    pub gamma: f64,
    /// How a sign is elected (TIES).
    pub sign: Election,
    /// What the result is multiplied by; the papers' lambda.
    pub scale: f64,
    /// What the random share depends on (DARE), beside the names of module and expert.
    pub seed: u64,
    /// The rank of the result, where deltas are merged.
    pub rank: Rank,
}

/// Where all matrices of each expert are cut together, if they are.
type Cuts = Vec<Option<f32>>;

impl TaskVectors {
    /// A row of the table with its defaults.
    fn of(recipe: &'static Recipe) -> Self {
        // A plain sum is born with a low rank, and exact; the others have to be brought to one.
        let rank = if recipe.is_plain_sum() { Rank::Full } else { Rank::Largest };
        let density = recipe.density;
        Self { recipe, density, gamma: 0.01, sign: Election::default(), scale: 1.0, seed: 0, rank }
    }

    /// Reads the settings of the merge of that name.
    pub(super) fn read(name: &str, settings: &mut Settings) -> Option<Self> {
        let default = Recipe::find(name, None)?;
        let convention = settings.take("convention", default.convention);
        let recipe = Recipe::find(name, Some(convention)).unwrap_or_else(|| {
            let known = listed(Recipe::conventions(name));
            settings.refuse(format!("convention={convention} has no {name} (there is: {known})"));
            default
        });
        let mut merge = Self::of(recipe);
        merge.read_amounts(settings);
        if recipe.space == Space::Deltas {
            merge.rank = settings.take("rank", merge.rank);
        }
        Some(merge)
    }

    /// Reads those of the merge within an alignment, which merges aligned deltas and leaves the rank to the alignment.
    pub(super) fn read_inner(settings: &mut Settings) -> Self {
        const DEFAULT: &str = "ties";
        let inner = settings.take("inner", DEFAULT.to_owned());
        let convention = settings.take("convention", Convention::Peft);
        let is_inner = |row: &&Recipe| row.space == Space::Deltas && convention != Convention::Paper;
        let found = [inner.clone(), format!("{inner}_svd")];
        let found = found.iter().filter_map(|name| Recipe::find(name, Some(convention)).filter(is_inner)).next();
        let recipe = found.or_else(|| {
            let problem = "is not known; inner is task_arithmetic, ties, dare_linear, dare_ties or magnitude_prune \
                           with convention=peft or mergekit, or breadcrumbs or breadcrumbs_ties with mergekit";
            settings.refuse(format!("inner={inner},convention={convention} {problem}"));
            Recipe::find("ties_svd", None)
        });
        let mut merge = Self::of(recipe.unwrap_or(&RECIPES[0]));
        merge.read_amounts(settings);
        merge
    }

    fn read_amounts(&mut self, settings: &mut Settings) {
        let recipe = self.recipe;
        if recipe.sparsify != Sparsify::None {
            self.density = settings.take("density", self.density);
            if !(self.density > 0.0 && self.density <= 1.0) {
                settings.refuse(format!("density={} must lie above 0 and up to 1", self.density));
            }
        }
        if recipe.sparsify == Sparsify::Outliers {
            self.gamma = settings.take("gamma", self.gamma);
            if !(0.0..1.0).contains(&self.gamma) {
                settings.refuse(format!("gamma={} must lie from 0 to below 1", self.gamma));
            }
        }
        if recipe.elects() {
            self.sign = settings.take("sign", self.sign);
        }
        if recipe.is_random() {
            self.seed = settings.take("seed", self.seed);
        }
        self.scale = settings.take("scale", self.scale);
        if !self.scale.is_finite() {
            settings.refuse(format!("scale={} must be a finite number", self.scale));
        }
    }

    /// What is typed for it, without settings.
    pub fn name(&self) -> &'static str {
        self.recipe.name
    }

    /// Whose arithmetic it follows.
    pub fn convention(&self) -> Convention {
        self.recipe.convention
    }

    pub(super) fn footprint(&self) -> Footprint {
        let dense = self.recipe.space == Space::Deltas && !self.recipe.is_plain_sum();
        if dense { Footprint::Dense } else { Footprint::LowRank }
    }

    /// Whether experts that agree give their mean, so that a weight of one each is the natural one.
    pub(super) fn averages_by_itself(&self) -> bool {
        match self.recipe.consensus {
            Consensus::Sum => self.recipe.name == "task_arithmetic",
            Consensus::Mean => true,
            Consensus::Elected(_, divide) => divide != Divide::None,
        }
    }

    fn amount(&self) -> Amount {
        Amount { density: self.density, gamma: self.gamma, seed: self.seed }
    }

    /// Looks through all modules for where each expert's values are cut, for those merges that cut them together.
    pub(super) fn cuts(&self, experts: &[Expert]) -> Cuts {
        if self.recipe.sparsify != Sparsify::Magnitude(Scope::Expert) || self.density >= 1.0 {
            return vec![None; experts.len()];
        }
        let of = |expert: &Expert| {
            let updates = expert.adapter.modules().values();
            let matrices: Vec<Values> = match self.recipe.space {
                Space::Deltas => updates.map(Values::delta).collect(),
                Space::Factors(_) => {
                    updates.flat_map(|update| [Values::matrix(update.a()), Values::matrix(update.b())]).collect()
                }
            };
            cut(&matrices, self.density)
        };
        experts.par_iter().map(of).collect()
    }

    /// Merges a module; `cuts` are those of [`Self::cuts`].
    pub(super) fn merge(&self, module: &Module, cuts: &Cuts) -> Result<Made> {
        match self.recipe.space {
            Space::Factors(share) => self.merge_factors(module, share, cuts),
            Space::Deltas if self.recipe.is_plain_sum() => {
                Product::sum(module, self.plain_factor(module.total_weight)).compressed(module, self.rank)
            }
            Space::Deltas => {
                let values = module.parts.iter().map(|part| Values::delta(part.update)).collect();
                let merged = self.merge_values(module, values, "delta", |part| part.weight, cuts);
                let delta = MatRef::from_row_major_slice(&merged, module.output, module.input);
                compress(module, delta, self.rank)
            }
        }
    }

    fn plain_factor(&self, total_weight: f64) -> f64 {
        match self.recipe.consensus {
            Consensus::Mean => self.scale / divisor(total_weight),
            _ => self.scale,
        }
    }

    fn merge_factors(&self, module: &Module, share: Share, cuts: &Cuts) -> Result<Made> {
        let rank = self.equal_rank(module)?;
        let weight_of_a = |part: &Part| match share {
            Share::Root => (part.weight * part.update.scale()).abs().sqrt().copysign(part.weight * part.update.scale()),
            Share::Both => part.weight,
        };
        let weight_of_b = |part: &Part| match share {
            Share::Root => (part.weight * part.update.scale()).abs().sqrt(),
            Share::Both => part.weight * part.update.scale(),
        };
        let a = module.parts.iter().map(|part| Values::matrix(part.update.a())).collect();
        let b = module.parts.iter().map(|part| Values::matrix(part.update.b())).collect();
        let a = self.merge_values(module, a, "A", weight_of_a, cuts);
        // The scale belongs to the delta and so to one of the factors; it was applied to A.
        let b = Self { scale: 1.0, ..*self }.merge_values(module, b, "B", weight_of_b, cuts);
        let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Ok(Made { update: module.update(rank, single(a), single(b))?, kept: Kept::ALL })
    }

    fn equal_rank(&self, module: &Module) -> Result<usize> {
        let rank = |part: &Part| (part.name.to_owned(), part.update.rank());
        let first = rank(&module.parts[0]);
        match module.parts.iter().find(|part| part.update.rank() != first.1) {
            None => Ok(first.1),
            Some(other) => Err(MergeError::UnequalRanks {
                method: self.recipe.name,
                module: module.path.to_owned(),
                first,
                second: rank(other),
                instead: match self.recipe.name {
                    "ties" => "ties_svd",
                    "dare_linear" => "dare_linear_svd",
                    "dare_ties" => "dare_ties_svd",
                    "magnitude_prune" => "magnitude_prune_svd",
                    _ => "cat or svd",
                },
            }),
        }
    }

    /// Merges the experts' matrices, all of one shape, value by value; row-major.
    pub(super) fn merge_values(
        &self,
        module: &Module,
        values: Vec<Values>,
        which: &str,
        weight: impl Fn(&Part) -> f64,
        cuts: &Cuts,
    ) -> Vec<f64> {
        let mask = |(part, values): (&Part, &Values)| {
            let cut = cuts.get(part.expert).copied().flatten();
            Mask::of(self.recipe, self.amount(), values, [module.path, part.name, which], cut)
        };
        let mut masks: Vec<Mask> = module.parts.iter().zip(&values).map(mask).collect();
        let weights: Vec<f64> = module.parts.iter().map(weight).collect();
        let (rows, columns) = (values[0].rows(), values[0].columns());
        let mut buffers = vec![vec![0f64; columns]; values.len()];
        let mut merged = vec![0f64; rows * columns];
        for (row, out) in merged.chunks_exact_mut(columns).enumerate() {
            for ((values, mask), buffer) in values.iter().zip(&mut masks).zip(&mut buffers) {
                values.row(row, buffer);
                mask.apply(row, buffer);
            }
            merge_row(self.recipe.consensus, self.sign, (&weights, module.total_weight), &buffers, out);
            out.iter_mut().for_each(|value| *value *= self.scale);
        }
        merged
    }

    /// The settings that the alignment does not have.
    pub(super) fn write_inner(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let name = self.recipe.name.strip_suffix("_svd").unwrap_or(self.recipe.name);
        write!(f, "inner={name},")?;
        self.write_amounts(f)
    }

    fn write_amounts(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "convention={}", self.recipe.convention)?;
        if self.recipe.sparsify != Sparsify::None {
            write!(f, ",density={}", self.density)?;
        }
        if self.recipe.sparsify == Sparsify::Outliers {
            write!(f, ",gamma={}", self.gamma)?;
        }
        if self.recipe.elects() {
            write!(f, ",sign={}", self.sign)?;
        }
        if self.recipe.is_random() {
            write!(f, ",seed={}", self.seed)?;
        }
        write!(f, ",scale={}", self.scale)
    }
}

impl fmt::Display for TaskVectors {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.write_amounts(f)?;
        match self.recipe.space {
            Space::Deltas => write!(f, ",rank={}", self.rank),
            Space::Factors(_) => Ok(()),
        }
    }
}
