//! Training on a target task, from an adapter of a library or from scratch.

use super::adapt_method::{Action, Adapted, Configure};
use crate::error::{FitError, Result, WithContext as _};
use crate::open_library::OpenLibrary;
use crate::training::train_context::TrainContext;
use crate::training::training_plan::TrainingPlan;
use crate::training::training_run::TrainedKind;
use lorakit_adapter::{Adapter, Library};
use lorakit_train::{Init, Job, TrainConfig, config_for_adapters};
use serde::Serialize;

/// Trains adapters, from an initial one where there is one.
pub(super) struct InitTraining {
    config: TrainConfig,
    init: Option<Init>,
    /// What there is to say of the adapter that it starts from.
    warning: Option<String>,
}

impl InitTraining {
    /// Training from `init`, with the rank and scale of its adapter unless the user asks for others.
    ///
    /// # Errors
    /// Where the user asks for another rank or scale than those of the adapter.
    pub fn new(init: Option<Init>, configure: &Configure) -> Result<Self> {
        let config = configure(default_config(init.as_ref())?)?;
        if let Some(init) = &init {
            ensure_shape(init, &config)?;
        }
        Ok(Self { config, init, warning: None })
    }

    /// Adds what the user is told before training, if anything.
    pub fn with_warning(self, warning: Option<String>) -> Self {
        Self { warning, ..self }
    }
}

impl Action for InitTraining {
    fn config(&self) -> &TrainConfig {
        &self.config
    }

    fn run(&self, context: &TrainContext, jobs: Vec<(TrainingPlan, Job)>, out: &Library) -> Result<Adapted> {
        let unused = unused(&self.config).join(", ");
        if !unused.is_empty() {
            context.reporter.warn(&format!("unused settings: {unused}"));
        }
        self.warning.iter().for_each(|warning| context.reporter.warn(warning));
        let from_init = |(plan, job)| (plan, Job { init: self.init.clone(), ..job });
        let planned = jobs.into_iter().map(from_init).collect();
        context
            .train_jobs(TrainedKind::Experts, out, planned, &self.config)
            .map(|report| Adapted::Trained(Box::new(report)))
    }
}

/// The changed settings that only skills use.
fn unused(settings: &TrainConfig) -> Vec<&'static str> {
    let defaults = TrainConfig::default();
    let changed = [
        ("routing_learning_rate", settings.routing_learning_rate != defaults.routing_learning_rate),
        ("splits", settings.splits != defaults.splits),
    ];
    changed.into_iter().filter_map(|(name, changed)| changed.then_some(name)).collect()
}

/// An expert in the record of where an initial adapter is from.
#[derive(Serialize)]
pub(super) struct SourceExpert {
    name: String,
    sha256: String,
}

impl SourceExpert {
    /// The expert of a library.
    pub fn of(opened: &OpenLibrary, name: &str) -> Result<Self> {
        Ok(Self { name: name.to_owned(), sha256: opened.weights_sha256(name)? })
    }
}

/// The default settings of training, with the rank and scale of the adapter that it starts from.
fn default_config(init: Option<&Init>) -> Result<TrainConfig> {
    let defaults = TrainConfig::default();
    match init {
        None => Ok(defaults),
        Some(init) => config_for_adapters(std::slice::from_ref(&init.adapter), &defaults)
            .with_context(|| "the adapter to start from cannot be used".to_owned()),
    }
}

/// Refuses settings with another rank or scale than those of the adapter that training starts from.
fn ensure_shape(init: &Init, settings: &TrainConfig) -> Result<()> {
    let Some((rank, scale)) = rank_and_scale(&init.adapter) else { return Ok(()) };
    if rank == settings.rank && (scale - settings.scale()).abs() < 1e-9 {
        return Ok(());
    }
    let settings = (settings.rank, settings.alpha);
    Err(FitError::InitShape { adapter: (rank, scale * rank as f64), settings })
}

/// The rank and scale of all modules, where they are the same.
pub(super) fn rank_and_scale(adapter: &Adapter) -> Option<(usize, f64)> {
    let mut pairs = adapter.modules().values().map(|pair| (pair.rank(), pair.scale()));
    let first = pairs.next()?;
    pairs.all(|(rank, scale)| rank == first.0 && (scale - first.1).abs() < 1e-9).then_some(first)
}
