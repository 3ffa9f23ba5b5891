//! Carries out an adaptation method for tasks.

use super::adapt_method::{Action, AdaptMethod, Adapted, Configure};
use super::row_fraction::Fraction;
use crate::error::Result;
use crate::open_library::OpenLibrary;
use crate::training::train_context::TrainContext;
use crate::training::training_plan::{jobs, private};
use lorakit_adapter::Library;
use lorakit_task::Task;
use lorakit_train::{Job, TrainConfig};

/// What a method does. Everything that can be wrong with a method and a library is found when the plan is made.
pub struct AdaptPlan<'a>(Box<dyn Action + 'a>);

impl<'a> AdaptPlan<'a> {
    /// The plan of a method.
    ///
    /// # Errors
    /// Where the method needs a library and there is none, or the library or the settings do not suit it.
    pub fn new(method: &'a dyn AdaptMethod, library: Option<&'a OpenLibrary>, configure: &Configure) -> Result<Self> {
        method.action(library, configure).map(Self)
    }

    /// The settings of training.
    pub fn config(&self) -> &TrainConfig {
        self.0.config()
    }

    /// Makes an adapter for each task, from the fraction of its rows, in `out`, which is locked.
    ///
    /// # Errors
    /// Where rows cannot be read, or a training run fails. What fails for single tasks is in the result.
    pub fn adapt(&self, context: &TrainContext, tasks: &[Task], fraction: Fraction, out: &Library) -> Result<Adapted> {
        let plans = private(tasks);
        let truncate = |mut job: Job| {
            job.train.truncate(fraction.of(job.train.len()));
            job.validation.truncate(fraction.of(job.validation.len()));
            job
        };
        let jobs = jobs(&plans, self.0.config(), context)?.into_iter().map(truncate);
        self.0.run(context, plans.into_iter().zip(jobs).collect(), out)
    }
}
