//! Poly and MHR: a few skills, trained jointly on many tasks, and the share of each skill in each task.
//!
//! Poly (Ponti et al. 2022, <https://arxiv.org/abs/2202.13914>) has K adapters, the skills, and for each task t and
//! adapted site a row of K logits Z. The task's own adapter at that site is
//!
//! `A_t = sum_k w_tk A_k`, `B_t = sum_k w_tk B_k`, `w_tk = σ(Z_tk) / (sum_j σ(Z_tj) + 1e-8)`
//!
//! so A's and B's are mixed separately. MHR (Caccia et al. 2022, <https://arxiv.org/abs/2211.03831>) splits A's input and
//! each projection's output into S blocks of equal width, each with K logits of its own; Poly is S = 1. Skills and logits
//! are trained jointly, the logits from U(-0.001, 0.001) and at their own learning rate, as in the code of
//! <https://arxiv.org/abs/2405.11157>. Each skill starts from its own A: from a shared one all skills would learn the same.

use crate::error::{Result, TrainError};
use crate::optim::parameter::Parameter;
use crate::train_config::TrainConfig;
use crate::trainable::dropout::Dropout;
use crate::trainable::lora_stack::{LoraStack, SiteStack, rows, transposed_columns};
use crate::trainable::skill_mixing::{SkillDims, SkillPatch, mixed, weights};
use candle_core::{Tensor, Var};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_format::rng::Key;
use lorakit_lora::{Patch, Patches, Site};
use lorakit_model::Base;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The task index of each row of a job.
#[derive(Clone, Debug, Default)]
pub struct RowTasks {
    /// Of the training rows.
    pub train: Vec<usize>,
    /// Of the validation rows.
    pub validation: Vec<usize>,
}

/// The tasks that are routed, and the blocks in which skills are mixed.
#[derive(Clone, Copy, Debug)]
pub struct RoutingSpec<'a> {
    /// The tasks' names.
    pub tasks: &'a [String],
    /// S of MHR; 1 for Poly.
    pub splits: usize,
}

/// Skills and the routing of several tasks, as variables.
pub struct SkillStack {
    dims: SkillDims,
    stack: LoraStack,
    /// One entry per site of the base, `[tasks, splits * skills]`; None if no projection is adapted.
    logits: Vec<Option<Var>>,
}

/// The bound of the logits' initial values.
const INIT_BOUND: f32 = 1e-3;

impl SkillStack {
    /// Skills with the values of `skills`, all of the rank, scale and modules of the config, and random logits near zero.
    ///
    /// # Errors
    /// If a skill differs from the config, or a width at an adapted site is not a multiple of `splits`.
    pub fn new(
        base: &Base,
        skills: Vec<Adapter>,
        routing: RoutingSpec,
        config: &TrainConfig,
        seed: u64,
    ) -> Result<Self> {
        let RoutingSpec { tasks, splits } = routing;
        if skills.is_empty() || splits == 0 || tasks.is_empty() {
            return Err(TrainError::EmptyRouting);
        }
        let dims = SkillDims { count: skills.len(), splits };
        let inits: Vec<Option<Adapter>> = skills.into_iter().map(Some).collect();
        let stack = LoraStack::new(base, &inits, config, seed)?;
        let mut logits = Vec::with_capacity(base.sites().len());
        for (site, adapted) in base.sites().iter().zip(&stack.sites) {
            let Some(adapted) = adapted else {
                logits.push(None);
                continue;
            };
            check_splits(site, adapted, splits)?;
            let columns = dims.count * splits;
            let row = |task: &String| {
                let mut stream = Key::new(seed, "routing").text(&site.key()).text(task).stream();
                (0..columns).map(move |_| INIT_BOUND * (2.0 * stream.uniform() - 1.0)).collect::<Vec<_>>()
            };
            let values: Vec<f32> = tasks.iter().flat_map(row).collect();
            logits.push(Some(Var::from_tensor(&Tensor::from_vec(values, (tasks.len(), columns), base.device())?)?));
        }
        Ok(Self { dims, stack, logits })
    }

    /// The number of skills and splits.
    pub fn dims(&self) -> SkillDims {
        self.dims
    }

    fn sites(&self) -> impl Iterator<Item = (usize, &SiteStack, &Var)> {
        let sites = self.stack.sites.iter().zip(&self.logits).enumerate();
        sites.filter_map(|(index, (site, logits))| Some((index, site.as_ref()?, logits.as_ref()?)))
    }

    /// The skills' variables by name.
    pub fn skill_variables(&self) -> Vec<(String, Var)> {
        let of_site = |(_, site, _): (usize, &SiteStack, &Var)| {
            [(format!("{}.A", site.key), site.a.clone()), (format!("{}.B", site.key), site.b.clone())]
        };
        self.sites().flat_map(of_site).collect()
    }

    /// The logits' variables by name, `[tasks, splits * skills]`.
    pub fn routing_variables(&self) -> Vec<(String, Var)> {
        self.sites().map(|(_, site, logits)| (format!("{}.routing", site.key), logits.clone())).collect()
    }

    /// All variables, the logits at their own learning rate.
    pub(crate) fn parameters(&self, config: &TrainConfig) -> Result<Vec<Parameter>> {
        let mut parameters = Vec::new();
        for (name, variable) in self.skill_variables() {
            parameters.push(Parameter::whole(name, variable, 0)?);
        }
        let factor = config.routing_learning_rate / config.learning_rate;
        for (name, variable) in self.routing_variables() {
            parameters.push(Parameter::whole(name, variable, 0)?.with_lr_factor(factor));
        }
        Ok(parameters)
    }

    /// The patches of a batch whose rows carry their task's index as their expert.
    pub fn patches(&self, dropout: Option<&Dropout>) -> Patches {
        let mut by_site: Vec<Option<Arc<dyn Patch>>> = vec![None; self.stack.sites.len()];
        for (index, site, logits) in self.sites() {
            by_site[index] = Some(Arc::new(SkillPatch {
                site: index,
                dims: self.dims,
                a: site.a.as_tensor().clone(),
                b: site.b.as_tensor().clone(),
                logits: logits.as_tensor().clone(),
                blocks: site.layout.0[0].clone(),
                dropout: dropout.cloned(),
            }));
        }
        Patches::new(by_site)
    }

    /// A skill with its current values.
    pub fn skill(&self, skill: usize) -> Result<Adapter> {
        self.stack.adapter(skill, &self.stack.values(skill)?)
    }

    /// The current logits by site, `[tasks, splits * skills]`.
    pub fn logits(&self) -> Result<BTreeMap<String, Matrix>> {
        let matrix = |logits: &Var| -> Result<Matrix> {
            let (tasks, columns) = logits.dims2()?;
            Ok(Matrix::new(tasks, columns, logits.flatten_all()?.to_vec1()?)?)
        };
        self.sites().map(|(_, site, logits)| Ok((site.key.clone(), matrix(logits)?))).collect()
    }

    /// Replaces the logits.
    ///
    /// # Errors
    /// If a site has none in `given`, or of another shape.
    pub fn set_logits(&self, given: &BTreeMap<String, Matrix>) -> Result<()> {
        for (_, site, logits) in self.sites() {
            let matrix = given.get(&site.key).ok_or_else(|| TrainError::NoLogits { site: site.key.clone() })?;
            let (expected, found) = (logits.dims2()?, (matrix.rows(), matrix.cols()));
            if found != expected {
                return Err(TrainError::LogitsShape { site: site.key.clone(), found, expected });
            }
            logits.set(&Tensor::from_slice(&matrix.values(), found, logits.device())?)?;
        }
        Ok(())
    }

    /// Sets all logits to zero: every skill has the same weight.
    pub fn set_uniform(&self) -> Result<()> {
        self.sites().try_for_each(|(_, _, logits)| Ok(logits.set(&logits.zeros_like()?)?))
    }

    /// The adapter that a task's routing mixes from the skills.
    pub fn task_adapter(&self, task: usize) -> Result<Adapter> {
        self.mixed_adapter(|logits| weights(&logits.narrow(0, task, 1)?, self.dims))
    }

    /// The adapter of the mean weights over all tasks, for an unknown task.
    pub fn mean_adapter(&self) -> Result<Adapter> {
        self.mixed_adapter(|logits| weights(logits, self.dims)?.mean_keepdim(0))
    }

    /// The adapter that `weights`, `[1, splits, skills]` for each site's logits, mix from the skills.
    fn mixed_adapter(&self, weights: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Adapter> {
        let mut modules = BTreeMap::new();
        for (_, site, logits) in self.sites() {
            let blocks = &site.layout.0[0];
            let (a, b) = mixed(&weights(&logits.detach())?, site.a.as_tensor(), site.b.as_tensor(), blocks)?;
            for (module, block) in site.modules.iter().zip(blocks) {
                let pair = LowRank::new(
                    Matrix::new(self.stack.rank, a.dim(1)?, rows(&a, &block.a)?)?,
                    Matrix::new(block.columns.len(), self.stack.rank, transposed_columns(&b, block)?)?,
                    self.stack.scale,
                )?;
                modules.insert(module.clone(), pair);
            }
        }
        Ok(Adapter::new(modules))
    }
}

/// Refuses widths that cannot be split into blocks of equal width.
fn check_splits(site: &Site, adapted: &SiteStack, splits: usize) -> Result<()> {
    let mut widths = adapted.layout.0[0].iter().map(|block| block.columns.len()).chain([site.input]);
    match widths.find(|width| width % splits != 0) {
        Some(width) => Err(TrainError::Splits { site: site.key(), width, splits }),
        None => Ok(()),
    }
}
