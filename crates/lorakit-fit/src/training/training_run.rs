//! A training run into a library, and the report of it.

use super::train_context::TrainContext;
use super::training_plan::{TrainingPlan, each_job};
use crate::error::{FitError, Result};
use crate::reporter::TrainingHooks;
use lorakit_adapter::{ExpertRecord, Library};
use lorakit_task::Split;
use lorakit_train::{
    FullFineTuning, Job, LossHistory, PlannedPass, RowTasks, RunPart, RunSummary, SkillDims, SkillTraining,
    TrainConfig, TrainEvent, Trainer, routing_store,
};
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// What training produces.
#[derive(Clone, Copy)]
pub enum TrainedKind<'a> {
    /// Adapters.
    Experts,
    /// A model, from a single plan.
    Model(&'a FullFineTuning<'a>),
    /// Skills and their routing, from a single plan.
    Skills(SkillDims),
}

/// The result of a run.
#[derive(Debug)]
pub struct TrainingReport {
    /// The library's folder.
    pub library: PathBuf,
    /// The part of the run that was trained, if it was not all of it.
    pub part: Option<RunPart>,
    /// The experts or the model, in the order of the plans, without those of other parts.
    pub experts: Vec<TrainedExpert>,
    /// The run, as the trainer reports it.
    pub summary: RunSummary,
    /// Plans whose rows cannot be trained on, with the reason, whichever part would train them.
    pub refused: Vec<(String, String)>,
}

/// An expert or model of a report.
#[derive(Clone, Debug, Serialize)]
pub struct TrainedExpert {
    /// Its name.
    pub expert: String,
    /// `trained`, `finished before`, `failed` or `unfinished`.
    pub status: &'static str,
    /// The names of its tasks.
    pub tasks: Vec<String>,
    /// Its training rows.
    pub rows: usize,
    /// The updates that were made.
    pub steps: usize,
    /// The last training loss.
    pub train_loss: Option<f64>,
    /// The lowest validation loss.
    pub validation_loss: Option<f64>,
}

impl TrainContext<'_> {
    /// Trains what the library does not have yet. The library is locked, unless a part of the run is trained. A plan whose
    /// rows cannot be trained on does not stop the others.
    ///
    /// # Errors
    /// Where no plan can be trained, or the run fails.
    pub fn train(
        &self,
        kind: TrainedKind,
        library: &Library,
        plans: &[TrainingPlan],
        settings: &TrainConfig,
    ) -> Result<TrainingReport> {
        let (ready, refused) = self.ready(plans, settings)?;
        let mut report = self.train_jobs(kind, library, ready, settings)?;
        report.add_refused(plans, refused);
        Ok(report)
    }

    /// The passes in which [`TrainContext::train`] would train the plans. Nothing is written.
    ///
    /// # Errors
    /// As [`TrainContext::train`].
    pub fn plan(
        &self,
        kind: TrainedKind,
        library: &Library,
        plans: &[TrainingPlan],
        settings: &TrainConfig,
    ) -> Result<Vec<PlannedPass>> {
        let (ready, _) = self.ready(plans, settings)?;
        let stop = AtomicBool::new(false);
        let run = Training { trainer: self.trainer(library, settings, &stop), kind, ready };
        run.plan()
    }

    /// The plans with their rows, and the names of those whose rows cannot be trained on, with the reason.
    fn ready<'t>(
        &self,
        plans: &[TrainingPlan<'t>],
        settings: &TrainConfig,
    ) -> Result<(Vec<ReadyPlan<'t>>, Vec<Refused>)> {
        let (mut ready, mut refused) = (Vec::new(), Vec::new());
        for (plan, job) in plans.iter().zip(each_job(plans, settings, self)) {
            match job {
                Ok(job) => ready.push((plan.clone(), job)),
                Err(error) if plans.len() == 1 => return Err(error),
                Err(error) => refused.push((plan.name.clone(), error)),
            }
        }
        if ready.is_empty() {
            // Only the first error is returned.
            return Err(refused.into_iter().next().map_or(FitError::NothingToTrain, |(_, why)| why));
        }
        let refused: Vec<Refused> = refused.into_iter().map(|(name, why)| (name, why.chain())).collect();
        refused.iter().for_each(|(name, why)| self.reporter.warn(&format!("{name} is not trained: {why}")));
        Ok((ready, refused))
    }

    fn trainer<'t>(&'t self, library: &'t Library, config: &'t TrainConfig, stop: &'t AtomicBool) -> Trainer<'t> {
        let (base, seed, restart, part) = (self.base, self.seed, self.restart, self.part);
        Trainer { base, library, config, seed, restart, part, stop }
    }

    /// As [`TrainContext::train`], with the plans' rows already read.
    ///
    /// # Errors
    /// Where the run fails, or a model or skills are to be trained from several plans.
    pub fn train_jobs(
        &self,
        kind: TrainedKind,
        library: &Library,
        ready: Vec<ReadyPlan>,
        settings: &TrainConfig,
    ) -> Result<TrainingReport> {
        let rows: Vec<usize> = ready.iter().map(|(_, job)| job.train.len()).collect();
        let plans: Vec<TrainingPlan> = ready.iter().map(|(plan, _)| plan.clone()).collect();
        let TrainingHooks { stop, mut on_event } = self.reporter.training();
        let run = Training { trainer: self.trainer(library, settings, &stop), kind, ready };
        let summary = run.train(&mut *on_event)?;
        drop((stop, on_event));
        let of_this_part = |(plan, _): &(&TrainingPlan, &usize)| !summary.elsewhere.contains(&plan.name);
        let row = |(plan, rows): (&TrainingPlan, &usize)| trained_expert(kind, library, plan, *rows, &summary);
        let experts = plans.iter().zip(&rows).filter(of_this_part).map(row).collect::<Result<_>>()?;
        let (library, part) = (library.root().to_owned(), self.part);
        Ok(TrainingReport { library, part, experts, summary, refused: Vec::new() })
    }
}

/// A plan with its rows.
pub type ReadyPlan<'a> = (TrainingPlan<'a>, Job);

/// The name of a plan that cannot be trained, with the reason.
type Refused = (String, String);

/// A trainer with what it trains.
struct Training<'t, 'p> {
    trainer: Trainer<'t>,
    kind: TrainedKind<'t>,
    ready: Vec<ReadyPlan<'p>>,
}

impl<'p> Training<'_, 'p> {
    fn train(self, on_event: &mut dyn FnMut(TrainEvent)) -> Result<RunSummary> {
        let trainer = self.trainer;
        Ok(match self.kind {
            TrainedKind::Experts => trainer.train_experts(self.jobs(), on_event)?,
            TrainedKind::Model(model) => trainer.train_model(model, self.single()?.1, on_event)?,
            TrainedKind::Skills(dims) => {
                let (plan, job) = self.single()?;
                trainer.train_skills(&skills(dims, &plan), job, on_event)?
            }
        })
    }

    fn plan(self) -> Result<Vec<PlannedPass>> {
        let trainer = self.trainer;
        Ok(match self.kind {
            TrainedKind::Experts => trainer.plan_experts(self.jobs())?,
            TrainedKind::Model(model) => trainer.plan_model(model, self.single()?.1)?,
            TrainedKind::Skills(dims) => {
                let (plan, job) = self.single()?;
                trainer.plan_skills(&skills(dims, &plan), job)?
            }
        })
    }

    fn jobs(self) -> Vec<Job> {
        self.ready.into_iter().map(|(_, job)| job).collect()
    }

    /// The only plan.
    fn single(mut self) -> Result<ReadyPlan<'p>> {
        match (self.ready.pop(), self.ready.len()) {
            (Some(only), 0) => Ok(only),
            (_, others) => Err(FitError::SeveralPlans(others + 1)),
        }
    }
}

/// The training of skills on the rows of a plan.
fn skills(dims: SkillDims, plan: &TrainingPlan) -> SkillTraining {
    let of = |split| task_of_rows(plan, split);
    SkillTraining { dims, tasks: RowTasks { train: of(Split::Train), validation: of(Split::Validation) } }
}

/// The index of the task of each of a plan's rows, which are ordered by task.
fn task_of_rows(plan: &TrainingPlan, split: Split) -> Vec<usize> {
    plan.tasks.iter().enumerate().flat_map(|(index, task)| std::iter::repeat_n(index, task.count(split))).collect()
}

/// An expert of the report, from what is recorded.
fn trained_expert(
    kind: TrainedKind,
    library: &Library,
    plan: &TrainingPlan,
    rows: usize,
    summary: &RunSummary,
) -> Result<TrainedExpert> {
    let status = match &plan.name {
        name if summary.trained.contains(name) => "trained",
        name if summary.finished.contains(name) => "finished before",
        name if summary.failed.iter().any(|(failed, _)| failed == name) => "failed",
        _ => "unfinished",
    };
    let record: Option<ExpertRecord> = match (status, kind) {
        ("trained" | "finished before", TrainedKind::Experts) => library.record(&plan.name)?,
        ("trained" | "finished before", TrainedKind::Model(_)) => library.model_record(&plan.name)?,
        ("trained" | "finished before", TrainedKind::Skills(_)) => routing_store::record(library, &plan.name)?,
        _ => None,
    };
    let history = record.as_ref().and_then(LossHistory::of).unwrap_or_default();
    Ok(TrainedExpert {
        expert: plan.name.clone(),
        status,
        tasks: plan.tasks.iter().map(|task| task.name.clone()).collect(),
        rows,
        steps: history.train.len(),
        train_loss: history.train.last().copied().flatten(),
        validation_loss: history.best.and_then(|(_, loss)| loss),
    })
}

impl TrainingReport {
    /// Adds plans that could not be trained, in the order of all plans.
    fn add_refused(&mut self, plans: &[TrainingPlan], refused: Vec<(String, String)>) {
        let failed = |plan: &TrainingPlan| TrainedExpert {
            expert: plan.name.clone(),
            status: "failed",
            tasks: plan.tasks.iter().map(|task| task.name.clone()).collect(),
            rows: plan.tasks.iter().map(|task| task.count(Split::Train)).sum(),
            steps: 0,
            train_loss: None,
            validation_loss: None,
        };
        let is_refused =
            |plan: &&TrainingPlan| self.reports_refused() && refused.iter().any(|(name, _)| *name == plan.name);
        let rows: Vec<TrainedExpert> = plans.iter().filter(is_refused).map(failed).collect();
        self.experts.extend(rows);
        self.experts.sort_by_key(|row| plans.iter().position(|plan| plan.name == row.expert));
        self.refused = refused;
    }

    /// Whether the plans that could not be trained are failures of this part: every part finds them, and one reports them.
    pub fn reports_refused(&self) -> bool {
        self.part.is_none_or(|part| part.index == 0)
    }

    /// The names of the experts that are in the library.
    pub fn finished(&self) -> impl Iterator<Item = &str> {
        let finished = |row: &&TrainedExpert| matches!(row.status, "trained" | "finished before");
        self.experts.iter().filter(finished).map(|row| row.expert.as_str())
    }

    /// Whether every expert is in the library.
    pub fn is_complete(&self) -> bool {
        !self.summary.stopped && self.summary.failed.is_empty() && self.refused.is_empty()
    }

    /// The run's folder; `None` where nothing had to be trained.
    pub fn run_folder(&self) -> Option<&PathBuf> {
        (!self.summary.folder.as_os_str().is_empty()).then_some(&self.summary.folder)
    }
}
