//! A training run into a library, and the report of it.

use super::train_context::TrainContext;
use super::training_plan::{TrainingPlan, each_job};
use crate::error::{FitError, Result};
use crate::reporter::TrainingHooks;
use lorakit_adapter::{ExpertRecord, Library};
use lorakit_task::Split;
use lorakit_train::{
    FullFineTuning, Job, LossHistory, RowTasks, RunSummary, SkillDims, SkillTraining, TrainConfig, Trainer,
    routing_store,
};
use serde::Serialize;
use std::path::PathBuf;

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
    /// The experts or the model, in the order of the plans.
    pub experts: Vec<TrainedExpert>,
    /// The run, as the trainer reports it.
    pub summary: RunSummary,
    /// Plans whose rows cannot be trained on, with the reason.
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
    /// Trains what the library, which is locked, does not have yet. A plan whose rows cannot be trained on does not
    /// stop the others.
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
            return refused.into_iter().next().map_or_else(|| Err(FitError::NothingToTrain), |(_, why)| Err(why));
        }
        let refused: Vec<(String, String)> = refused.into_iter().map(|(name, why)| (name, why.chain())).collect();
        refused.iter().for_each(|(name, why)| self.reporter.warn(&format!("{name} is not trained: {why}")));
        let mut report = self.train_jobs(kind, library, ready, settings)?;
        report.add_refused(plans, refused);
        Ok(report)
    }

    /// As [`TrainContext::train`], with the plans' rows already read.
    ///
    /// # Errors
    /// Where the run fails, or a model or skills are to be trained from several plans.
    pub fn train_jobs(
        &self,
        kind: TrainedKind,
        library: &Library,
        planned: Vec<(TrainingPlan, Job)>,
        settings: &TrainConfig,
    ) -> Result<TrainingReport> {
        let (plans, mut jobs): (Vec<TrainingPlan>, Vec<Job>) = planned.into_iter().unzip();
        let single = matches!(kind, TrainedKind::Experts) || jobs.len() == 1;
        if !single {
            return Err(FitError::SeveralPlans(jobs.len()));
        }
        let rows: Vec<usize> = jobs.iter().map(|job| job.train.len()).collect();
        let TrainingHooks { stop, mut on_event } = self.reporter.training();
        let (base, seed, restart) = (self.base, self.seed, self.restart);
        let trainer = Trainer { base, library, config: settings, seed, restart, stop: &stop };
        let summary = match kind {
            TrainedKind::Experts => trainer.train_experts(jobs, &mut *on_event)?,
            TrainedKind::Model(model) => trainer.train_model(model, jobs.remove(0), &mut *on_event)?,
            TrainedKind::Skills(dims) => {
                let of = |split| task_of_rows(&plans[0], split);
                let skills = SkillTraining {
                    dims,
                    tasks: RowTasks { train: of(Split::Train), validation: of(Split::Validation) },
                };
                trainer.train_skills(&skills, jobs.remove(0), &mut *on_event)?
            }
        };
        drop((stop, on_event));
        if !summary.kept.is_empty() {
            // A process that was killed may have added them without recording the base.
            library.record_base()?;
        }
        let row = |(plan, rows): (&TrainingPlan, &usize)| trained_expert(kind, library, plan, *rows, &summary);
        let experts = plans.iter().zip(&rows).map(row).collect::<Result<_>>()?;
        Ok(TrainingReport { library: library.root().to_owned(), experts, summary, refused: Vec::new() })
    }
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
        name if summary.kept.contains(name) => "finished before",
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
        let is_refused = |plan: &&TrainingPlan| refused.iter().any(|(name, _)| *name == plan.name);
        self.experts.extend(plans.iter().filter(is_refused).map(failed));
        self.experts.sort_by_key(|row| plans.iter().position(|plan| plan.name == row.expert));
        self.refused = refused;
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
