//! What an adaptation method does with a library and tasks.

use super::adapt_method::Method;
use super::init_adapter;
use super::outcomes::Outcomes;
use super::row_fraction::Fraction;
use super::skill_fit::{self, LibrarySkills, SkillFit};
use super::weighted_experts::compose;
use crate::open_library::OpenLibrary;
use crate::training::train_context::TrainContext;
use crate::training::training_plan::{jobs, private};
use crate::training::training_run::{TrainedKind, TrainingReport};
use anyhow::{Context as _, Result};
use lorakit_adapter::Library;
use lorakit_route::FittedMerge;
use lorakit_task::Task;
use lorakit_train::{FitScope, Init, Job, TrainConfig};

/// What a method does. Everything that can be wrong with a method and a library is found when the plan is made.
pub struct AdaptPlan<'a> {
    method: &'a Method,
    action: Action<'a>,
}

enum Action<'a> {
    /// Trains adapters, from a start where there is one.
    Train(Box<TrainConfig>, Option<Box<Init>>),
    /// Fits the routing of skills, with or without the skills.
    Route(Box<TrainConfig>, FitScope, LibrarySkills, &'a OpenLibrary),
    /// Fits weights of experts.
    Compose(&'a dyn FittedMerge, &'a OpenLibrary),
}

/// What came of adapting.
pub enum Adapted {
    /// Adapters that were trained.
    Trained(TrainingReport),
    /// Adapters of routings that were fitted.
    Routed(Outcomes),
    /// Adapters of weights that were fitted.
    Composed(Outcomes),
}

impl<'a> AdaptPlan<'a> {
    /// The plan of a method. `settings` changes the default settings of training that suit the method into those that
    /// the user asks for.
    ///
    /// # Errors
    /// Where the method needs a library and there is none, or the library or the settings do not suit it.
    pub fn new(
        method: &'a Method,
        library: Option<&'a OpenLibrary>,
        settings: &dyn Fn(TrainConfig) -> Result<TrainConfig>,
    ) -> Result<Self> {
        Ok(Self { method, action: Action::new(method, library, settings)? })
    }

    /// Makes an adapter for each task, from the fraction of its rows, in `out`, which is locked.
    ///
    /// # Errors
    /// Where rows cannot be read, or a training run fails. What fails for single tasks is in the result.
    pub fn adapt(&self, context: &TrainContext, tasks: &[Task], fraction: Fraction, out: &Library) -> Result<Adapted> {
        let plans = private(tasks);
        let defaults = TrainConfig::default();
        let settings = match &self.action {
            Action::Train(settings, _) | Action::Route(settings, ..) => settings,
            Action::Compose(..) => &defaults,
        };
        let jobs = truncated(jobs(&plans, settings, context)?, fraction);
        match &self.action {
            Action::Compose(merge, opened) => Ok(Adapted::Composed(compose(context, *merge, opened, out, jobs))),
            Action::Route(settings, tuned, skills, opened) => {
                let unused = skill_fit::unused(settings, &skills.settings()?).join(", ");
                if !unused.is_empty() {
                    let name = self.method.name();
                    context.reporter.warn(&format!("--method {name} does not use the settings {unused}"));
                }
                let fit = SkillFit { context, opened, tuned: *tuned, settings };
                Ok(Adapted::Routed(skills.adapt(&fit, out, jobs)))
            }
            Action::Train(settings, start) => {
                let jobs = jobs.into_iter().map(|job| Job { init: start.as_deref().cloned(), ..job });
                let planned = plans.into_iter().zip(jobs).collect();
                context.train_jobs(TrainedKind::Experts, out, planned, settings).map(Adapted::Trained)
            }
        }
    }
}

impl<'a> Action<'a> {
    fn new(
        method: &'a Method,
        library: Option<&'a OpenLibrary>,
        settings: &dyn Fn(TrainConfig) -> Result<TrainConfig>,
    ) -> Result<Self> {
        let opened = || library.context("the method needs --library");
        let start = match method {
            Method::NoLibrary => None,
            Method::Mean => Some(init_adapter::mean(opened()?, settings(TrainConfig::default())?.rank)?),
            Method::Shared(name) => Some(init_adapter::shared(opened()?, name.as_deref())?),
            Method::Skills(tuned) => {
                let skills = LibrarySkills::of(opened()?)?;
                let settings = settings(skills.settings()?)?;
                return Ok(Self::Route(Box::new(settings), *tuned, skills, opened()?));
            }
            Method::FittedMerge(merge) => {
                merge.check(&opened()?.experts)?;
                return Ok(Self::Compose(&**merge, opened()?));
            }
        };
        let settings = settings(init_adapter::settings(start.as_ref())?)?;
        if let Some(start) = &start {
            init_adapter::ensure_form(start, &settings)?;
        }
        Ok(Self::Train(Box::new(settings), start.map(Box::new)))
    }
}

/// The fraction of the rows of each job, from the start.
fn truncated(jobs: Vec<Job>, fraction: Fraction) -> Vec<Job> {
    let truncate = |mut job: Job| {
        job.train.truncate(fraction.of(job.train.len()));
        job.validation.truncate(fraction.of(job.validation.len()));
        job
    };
    jobs.into_iter().map(truncate).collect()
}
