//! `poly` and `mhr`: skills that were trained together, mixed as the routing of the task at hand says
//! (Ponti et al. 2022, <https://arxiv.org/abs/2202.13914>; Caccia et al. 2022, <https://arxiv.org/abs/2211.03831>).
//!
//! A task's routing makes one adapter of the skills, `A = sum_k w_k A_k`, `B = sum_k w_k B_k`, in blocks of columns for
//! MHR. A task that the skills were trained on has a row of the routing; for another it is learned from the task's rows,
//! the skills as they are, or is the mean over the tasks trained on.
//!
//! Learned: for each adapted module `MODULE`, as `model.layers.0.self_attn.q_proj`, the mixed `MODULE.A`, `[rank, in]`,
//! and `MODULE.B`, `[out, rank]`, which has the scale in it.

use crate::error::{Result, adapter};
use crate::expert;
use crate::experts::{Expert, Experts};
use crate::learned::{Learned, Lesson};
use crate::settings::{AtMost, Settings};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_lora::Patches;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Which routing of a library is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// `routers/poly`, of `train-experts --poly`.
    Poly,
    /// `routers/mhr`, of `train-experts --mhr`.
    Mhr,
}

/// What a task gets whose routing was not trained with the skills.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unseen {
    /// A routing learned from rows of the task.
    #[default]
    Fit,
    /// The mean of the weights of all tasks that were trained on; those keep their own.
    Mean,
}

impl FromStr for Unseen {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "fit" => Ok(Self::Fit),
            "mean" => Ok(Self::Mean),
            _ => Err("fit or mean"),
        }
    }
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Fit => "fit",
            Self::Mean => "mean",
        })
    }
}

/// The routers `poly` and `mhr`.
#[derive(Clone, Debug, PartialEq)]
pub struct Poly {
    /// Which routing.
    pub trained: Trained,
    /// Where the routing of a new task comes from.
    pub unseen: Unseen,
    /// Rows of a new task that its routing is learned from, at most.
    pub rows: AtMost,
    /// Updates of the routing of a new task.
    pub steps: usize,
    /// Their learning rate.
    pub rate: f64,
}

impl Poly {
    pub(crate) fn parse(trained: Trained, mut settings: Settings) -> Result<Self> {
        let poly = Self {
            trained,
            unseen: settings.take("unseen", Unseen::default()),
            rows: settings.take("rows", AtMost::ALL),
            steps: settings.take("steps", 100),
            rate: settings.take("rate", 0.1),
        };
        if poly.steps == 0 || !(poly.rate.is_finite() && poly.rate > 0.0) {
            settings.refuse("steps and rate must be above zero".to_owned());
        }
        settings.finish().map(|()| poly)
    }

    /// What is typed for it, and what its folder is called.
    pub fn name(&self) -> &'static str {
        match self.trained {
            Trained::Poly => "poly",
            Trained::Mhr => "mhr",
        }
    }

    /// Rows of the task at hand.
    pub fn lesson(&self) -> Lesson {
        Lesson::Task { rows: self.rows.0 }
    }

    /// What is learned where the skills were mixed to `mixed`.
    pub fn learned(mixed: &Adapter) -> Result<Learned> {
        let mut matrices = Vec::new();
        for (module, pair) in mixed.modules() {
            let b = pair.b().values().iter().map(|value| (f64::from(*value) * pair.scale()) as f32).collect();
            matrices.push((format!("{module}.A"), pair.a().clone()));
            matrices.push((format!("{module}.B"), Matrix::new(pair.output(), pair.rank(), b).map_err(adapter)?));
        }
        Ok(Learned::new(matrices))
    }

    /// The patches of the mixed skills.
    ///
    /// # Errors
    /// Where what was learned is of another base.
    pub fn patches(&self, experts: &Experts, learned: &Learned) -> Result<Patches> {
        let mut modules = BTreeMap::new();
        for (name, a) in learned.matrices() {
            let Some(module) = name.strip_suffix(".A") else { continue };
            let sites = experts.sites().iter().flat_map(|site| &site.projections);
            let width =
                sites.filter(|projection| projection.module == module).map(|projection| projection.width).next();
            let b = learned.matrix(&format!("{module}.B"), (width.unwrap_or(0), a.rows()))?;
            modules.insert(module.to_owned(), LowRank::new(a.clone(), b.clone(), 1.0).map_err(adapter)?);
        }
        let Some(device) = experts.stacks().next().map(|(_, _, stack)| stack.a().device().clone()) else {
            return Ok(Patches::none());
        };
        expert::one(&Experts::new([Expert::new(self.name(), Adapter::new(modules))], experts.sites(), &device)?, 0)
    }
}

impl fmt::Display for Poly {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { unseen, rows, steps, rate, .. } = self;
        write!(f, "unseen={unseen},rows={rows},steps={steps},rate={rate}")
    }
}
