//! CAT, the learned concatenation of LoRA Soups (Prabhakar et al. 2024, <https://arxiv.org/abs/2410.13025>):
//! `delta(x) = g sum_e w_e s_e B_e A_e x`, with a weight for each expert and layer, and no cross terms.
//!
//! The weights are fitted by gradient to rows that ask for all the experts at once. They start uniform, at `1/n`, which
//! is the static form; with `steps=0` they stay there. The authors' code starts at random, forces the weights of a
//! module to a sum of one by a softmax, and uses a learning rate of 1e-4, at which a weight moves less than the spread
//! of its random initialization; their merge then omits the learned weights. Here the sum is free unless
//! `simplex=true`, where the softmax of fitted logits is taken; the factor `g`, shared by all layers, still lets a
//! mixture be stronger than a mean.
//!
//! This crate does no fitting: [`TrainableWeights`] holds the variables and makes patches of them for the fit.
//!
//! State: `weights`, `[groups, experts]`, with `g` in them; a group is what [`Granularity`] says, in the order of the
//! sites.

use crate::error::Result;
use crate::fixed::every_token::EveryToken;
use crate::fixed::trainable_weights::TrainableWeights;
use crate::fixed::weight_groups::{Granularity, WeightGroups};
use crate::library_stack::LibraryStack;
use crate::merge::coefficients::Coefficients;
use crate::merge::concatenation::Concatenation;
use crate::merge::fitted_merge::FittedMerge;
use crate::merge::merge_method::MergeMethod;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, above_zero, at_least_one, defaults, read, write};
use crate::router::{Router, RouterContext};
use crate::site_lora::SiteLora;
use crate::site_patches::site_patches;
use crate::training_data::TrainingData;
use lorakit_adapter::Matrix;
use lorakit_lora::{Patch, Patches};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `cat`.
pub static CAT: MethodInfo<dyn Router> = MethodInfo {
    name: "cat",
    aliases: &[],
    summary: "every expert, at a weight per layer fitted to rows of the task",
    link: Some("https://arxiv.org/abs/2410.13025"),
    defaults: defaults::<Cat>,
    parse: |name, typed| Ok(Arc::new(read::<Cat>(name, typed)?)),
    version: 2,
};

/// The fitted merge `cat_learned`.
pub static CAT_LEARNED: MethodInfo<dyn FittedMerge> = MethodInfo {
    name: "cat_learned",
    aliases: &["cat"],
    summary: "the exact weighted sum, with a weight per expert and layer fitted by gradient",
    link: Some("https://arxiv.org/abs/2410.13025"),
    defaults: defaults::<Cat>,
    parse: |name, typed| Ok(Arc::new(CatMerge(read::<Cat>(name, typed)?))),
    version: 2,
};

/// The router `cat`, and the settings of [`CatMerge`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cat {
    /// What has weights of its own.
    pub per: Granularity,
    /// Whether the weights of a group are positive with the sum `g`.
    pub simplex: bool,
    /// The maximum number of rows of each task that the weights are fitted to.
    pub rows: usize,
    /// The number of optimizer steps.
    pub steps: usize,
    /// The peak learning rate.
    pub learning_rate: f64,
}

/// The fitted merge `cat_learned`: the weights of [`Cat`], folded into one adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct CatMerge(pub Cat);

impl Default for Cat {
    fn default() -> Self {
        Self { per: Granularity::Layer, simplex: false, rows: 100, steps: 100, learning_rate: 0.05 }
    }
}

impl Settings for Cat {
    fn validate(&self) -> Result<(), String> {
        at_least_one("rows", self.rows)?;
        above_zero("learning_rate", self.learning_rate)
    }
}

impl fmt::Display for Cat {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, CAT.name, self)
    }
}

impl fmt::Display for CatMerge {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, CAT_LEARNED.name, &self.0)
    }
}

impl Router for Cat {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &CAT
    }

    /// # Errors
    /// If the state is missing, or was fitted to another library.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        experts.ensure_layers_only(CAT.name)?;
        let groups = WeightGroups::of(self.per, experts);
        let weights = context.state_of(self)?.matrix("weights", (groups.names.len(), experts.len()))?.values();
        site_patches(experts, |index, _, stack| {
            let weight = |projection, expert| weights[groups.group(index, projection) * experts.len() + expert];
            Ok(Some(Arc::new(EveryToken(SiteLora(stack.weighted_sum(weight)?))) as Arc<dyn Patch>))
        })
    }

    fn training_data(&self) -> Option<TrainingData> {
        Some(TrainingData::TargetTask { rows: self.rows })
    }
}

impl FittedMerge for CatMerge {
    fn info(&self) -> &'static MethodInfo<dyn FittedMerge> {
        &CAT_LEARNED
    }

    fn rows(&self) -> usize {
        self.0.rows
    }

    fn merge(&self, experts: &LibraryStack, weights: &Matrix) -> Result<(Arc<dyn MergeMethod>, Coefficients)> {
        Ok((Arc::new(Concatenation), self.0.coefficients(experts, weights)?))
    }
}

impl Cat {
    /// The weights before their fit, as variables, with the experts that they weigh.
    ///
    /// # Errors
    /// If a tensor cannot be made, or an expert changes the embedding or the head.
    pub fn trainable_weights<'a>(&self, experts: &'a LibraryStack) -> Result<TrainableWeights<'a>> {
        experts.ensure_layers_only(CAT.name)?;
        TrainableWeights::new(self.per, self.simplex, experts)
    }

    /// Fitted weights, `[groups, experts]`, as coefficients of a merge: [`Concatenation`] folds them into the merged
    /// adapter.
    ///
    /// # Errors
    /// If the weights are of another library.
    pub fn coefficients(&self, experts: &LibraryStack, weights: &Matrix) -> Result<Coefficients> {
        experts.ensure_layers_only(CAT.name)?;
        let groups = WeightGroups::of(self.per, experts);
        let values = groups.values(experts, weights)?;
        let mut coefficients = Coefficients::uniform(experts.len());
        for (index, site, _) in experts.stacks() {
            for (projection, changed) in site.projections.iter().enumerate() {
                if (0..experts.len()).any(|expert| experts.module(expert, &changed.module).is_some()) {
                    let row = &values[groups.group(index, projection) * experts.len()..][..experts.len()];
                    coefficients =
                        coefficients.with_module(&changed.module, row.iter().map(|w| f64::from(*w)).collect());
                }
            }
        }
        Ok(coefficients)
    }

    /// The names of the groups, in their order, as `layer 3` or `3.qkv`.
    pub fn groups(&self, experts: &LibraryStack) -> Vec<String> {
        WeightGroups::of(self.per, experts).names
    }
}
