//! What an adaptation method is.

use super::outcomes::Outcomes;
use crate::error::{FitError, Result};
use crate::open_library::OpenLibrary;
use crate::training::train_context::TrainContext;
use crate::training::training_plan::TrainingPlan;
use crate::training::training_run::TrainingReport;
use lorakit_adapter::Library;
use lorakit_train::{BoxError, Job, TrainConfig};
use std::fmt::{self, Debug, Display};
use std::sync::Arc;

/// A way from a library to a target task. Its display is the name with all settings, as it is typed.
///
/// All methods are in [`crate::adapt::ADAPT_METHODS`].
pub trait AdaptMethod: Debug + Display + Send + Sync {
    /// Its name, settings and summary.
    fn info(&self) -> &'static AdaptMethodInfo;

    /// Checks the library and the settings, and says what is done with the rows of each task.
    ///
    /// # Errors
    /// Where the method needs a library and there is none, or the library or the settings do not suit it.
    fn action<'a>(&'a self, library: Option<&'a OpenLibrary>, configure: &Configure) -> Result<Box<dyn Action + 'a>>;
}

/// Changes the default settings of training that suit a method into those that the user asks for.
pub type Configure<'a> = dyn Fn(TrainConfig) -> Result<TrainConfig, BoxError> + 'a;

/// What a method does, once its library and settings are known to suit it.
pub trait Action {
    /// The settings of training; rows are read by them.
    fn config(&self) -> &TrainConfig;

    /// Makes an adapter for each task in `out`, which is locked.
    ///
    /// # Errors
    /// Where a training run fails. What fails for single tasks is in the result.
    fn run(&self, context: &TrainContext, jobs: Vec<(TrainingPlan, Job)>, out: &Library) -> Result<Adapted>;
}

/// The result of adapting.
pub enum Adapted {
    /// Adapters that were trained.
    Trained(Box<TrainingReport>),
    /// Adapters of routings that were fitted.
    Routed(Outcomes),
    /// Adapters of weights that were fitted.
    Weighted(Outcomes),
}

/// What is typed for a method, what is said of it, and how it is read.
pub struct AdaptMethodInfo {
    /// The name that is typed.
    pub name: &'static str,
    /// What may follow the name, in brackets, with the defaults; empty where nothing may.
    pub settings: fn() -> String,
    /// What it does, in one line.
    pub summary: &'static str,
    /// The address of its source.
    pub link: Option<&'static str>,
    /// Whether it starts from a library.
    pub needs_library: bool,
    /// Whether it uses the settings of training.
    pub uses_train_config: bool,
    /// Reads it from what is typed after the colon, if anything.
    pub parse: fn(Option<&str>) -> Result<Arc<dyn AdaptMethod>>,
}

impl AdaptMethodInfo {
    /// The name with what may follow it.
    pub fn usage(&self) -> String {
        format!("{}{}", self.name, (self.settings)())
    }

    /// The summary, with the link if there is one.
    pub fn description(&self) -> String {
        match self.link {
            Some(link) => format!("{} ({link})", self.summary),
            None => self.summary.to_owned(),
        }
    }

    /// Refuses settings, for a method that has none.
    pub(super) fn ensure_no_settings(&self, typed: Option<&str>) -> Result<()> {
        match typed {
            None => Ok(()),
            Some(settings) => Err(FitError::NoSettings { name: self.name, found: format!("{}:{settings}", self.name) }),
        }
    }
}

impl Debug for AdaptMethodInfo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "AdaptMethodInfo({})", self.name)
    }
}

/// The settings of a method that has none.
pub(super) fn no_settings() -> String {
    String::new()
}
