//! `poly` and `mhr`: skills that were trained together, mixed by the routing of the current task
//! (Ponti et al. 2022, <https://arxiv.org/abs/2202.13914>; Caccia et al. 2022, <https://arxiv.org/abs/2211.03831>).
//!
//! A task's routing makes one adapter of the skills, `A = sum_k w_k A_k`, `B = sum_k w_k B_k`, in blocks of columns for
//! MHR. A task that the skills were trained on has a row of the routing; for another it is fitted to the task's rows,
//! with the skills frozen, or is the mean over the tasks trained on.
//!
//! State: for each adapted module `MODULE`, as `model.layers.0.self_attn.q_proj`, the mixed `MODULE.A`, `[rank, in]`,
//! and `MODULE.B`, `[out, rank]`, with the scale multiplied in.

use crate::error::Result;
use crate::fixed::single::single_expert;
use crate::library_stack::{Expert, LibraryStack};
use crate::limit::Limit;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use crate::router::{Router, RouterContext};
use crate::router_state::RouterState;
use crate::training_data::TrainingData;
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_lora::Patches;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// The router `poly`.
pub static POLY: MethodInfo<dyn Router> = MethodInfo {
    name: "poly",
    aliases: &[],
    summary: "the skills of train-experts --poly, mixed for the current task; fits the routing of a new task",
    link: Some("https://arxiv.org/abs/2202.13914"),
    defaults: defaults::<SkillSettings>,
    parse: |name, typed| Ok(Arc::new(Poly { trained: SkillRouting::Poly, settings: read(name, typed)? })),
    version: 3,
};

/// The router `mhr`.
pub static MHR: MethodInfo<dyn Router> = MethodInfo {
    name: "mhr",
    aliases: &[],
    summary: "the skills of train-experts --mhr, mixed block by block",
    link: Some("https://arxiv.org/abs/2211.03831"),
    defaults: defaults::<SkillSettings>,
    parse: |name, typed| Ok(Arc::new(Poly { trained: SkillRouting::Mhr, settings: read(name, typed)? })),
    version: 3,
};

/// Which routing of a library is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkillRouting {
    /// `routers/poly`, of `train-experts --poly`.
    Poly,
    /// `routers/mhr`, of `train-experts --mhr`.
    Mhr,
}

/// The routing of a task that the skills were not trained on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unseen {
    /// A routing fitted to rows of the task.
    #[default]
    Fit,
    /// The mean of the weights of all tasks that were trained on; those keep their own.
    Mean,
}

/// The routers `poly` and `mhr`.
#[derive(Clone, Debug, PartialEq)]
pub struct Poly {
    /// Which routing.
    pub trained: SkillRouting,
    /// How a new task is routed.
    pub settings: SkillSettings,
}

/// The settings of [`Poly`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SkillSettings {
    /// Where the routing of a new task comes from.
    pub unseen: Unseen,
    /// The maximum number of rows of a new task that its routing is fitted to.
    pub rows: Limit,
    /// The number of optimizer steps for the routing of a new task.
    pub steps: usize,
    /// Their learning rate. It is written as `rate`, since the hashes of fitted routers contain their texts.
    #[serde(rename = "rate")]
    pub learning_rate: f64,
}

impl Default for SkillSettings {
    fn default() -> Self {
        Self { unseen: Unseen::Fit, rows: Limit::ALL, steps: 100, learning_rate: 0.1 }
    }
}

impl Settings for SkillSettings {
    const ALIASES: &'static [(&'static str, &'static str)] = &[("learning_rate", "rate")];

    fn validate(&self) -> Result<(), String> {
        if self.steps == 0 || !(self.learning_rate.is_finite() && self.learning_rate > 0.0) {
            return Err("steps and rate must be above zero".to_owned());
        }
        Ok(())
    }
}

impl fmt::Display for Poly {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, self.info().name, &self.settings)
    }
}

impl Router for Poly {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        match self.trained {
            SkillRouting::Poly => &POLY,
            SkillRouting::Mhr => &MHR,
        }
    }

    /// # Errors
    /// If the state is missing, or was fitted to another base.
    fn patches(&self, experts: &LibraryStack, context: &RouterContext) -> Result<Patches> {
        experts.ensure_layers_only(self.info().name)?;
        let state = context.state_of(self)?;
        let mut modules = BTreeMap::new();
        for (name, a) in state.matrices() {
            let Some(module) = name.strip_suffix(".A") else { continue };
            let mut projections = experts.sites().iter().flat_map(|site| &site.projections);
            let width = projections.find(|projection| projection.module == module).map_or(0, |found| found.width);
            let b = state.matrix(&format!("{module}.B"), (width, a.rows()))?;
            modules.insert(module.to_owned(), LowRank::new(a.clone(), b.clone(), 1.0)?);
        }
        let Some(device) = experts.stacks().next().map(|(_, _, stack)| stack.device().clone()) else {
            return Ok(Patches::none());
        };
        let mixed = Expert::new(self.info().name, Adapter::new(modules));
        single_expert(&LibraryStack::new([mixed], experts.sites(), &device)?, 0)
    }

    fn training_data(&self) -> Option<TrainingData> {
        Some(TrainingData::TargetTask { rows: self.settings.rows.0 })
    }
}

impl Poly {
    /// The state of a task for which the skills were mixed to `mixed`.
    ///
    /// # Errors
    /// If a matrix is not finite.
    pub fn state(mixed: &Adapter) -> Result<RouterState> {
        let mut matrices = Vec::new();
        for (module, pair) in mixed.modules() {
            let b = pair.b().values().iter().map(|value| (f64::from(*value) * pair.scale()) as f32).collect();
            matrices.push((format!("{module}.A"), pair.a().clone()));
            let b = Matrix::new(pair.output(), pair.rank(), b)?;
            matrices.push((format!("{module}.B"), b));
        }
        Ok(RouterState::new(matrices))
    }
}
