//! What a run would train, pass by pass, before it is started.

use crate::error::Result;
use crate::job::Job;
use crate::run::run_folder::RunFolder;
use crate::run::run_part::part_of_pass;
use crate::run::trainer::{Trainer, TrainingRun};
use crate::run::training_target::{FullFineTuning, SkillTraining, TrainingTarget};
use lorakit_task::Example;
use serde::Serialize;

/// A pass that a run would train.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedPass {
    /// Its index.
    pub pass: usize,
    /// The part that it belongs to, if the run has parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<usize>,
    /// Its experts.
    pub experts: Vec<String>,
    /// Whether all of them are in the library.
    pub finished: bool,
    /// Training rows.
    pub rows: usize,
    /// Steps of the expert with the most.
    pub steps: usize,
    /// Tokens read in all steps, by the mean length of each expert's rows.
    pub tokens: usize,
    /// Estimated memory in bytes, without the program, its tokenizer and the rows.
    pub memory: u64,
}

impl Trainer<'_> {
    /// The passes of [`Trainer::train_experts`], of all parts or of [`Trainer::part`]. Nothing is written or locked, so
    /// that processes which train meanwhile may make it out of date.
    ///
    /// # Errors
    /// As [`Trainer::train_experts`].
    pub fn plan_experts(&self, jobs: Vec<Job>) -> Result<Vec<PlannedPass>> {
        self.plan(&TrainingTarget::Experts, jobs)
    }

    /// The pass of [`Trainer::train_model`].
    ///
    /// # Errors
    /// As [`Trainer::train_model`].
    pub fn plan_model(&self, model: &FullFineTuning, job: Job) -> Result<Vec<PlannedPass>> {
        self.plan(&TrainingTarget::Model(model), vec![job])
    }

    /// The pass of [`Trainer::train_skills`].
    ///
    /// # Errors
    /// As [`Trainer::train_skills`].
    pub fn plan_skills(&self, skills: &SkillTraining, job: Job) -> Result<Vec<PlannedPass>> {
        self.plan(&TrainingTarget::Skills(skills), vec![job])
    }

    fn plan(&self, target: &TrainingTarget, jobs: Vec<Job>) -> Result<Vec<PlannedPass>> {
        self.config.validate()?;
        let jobs = self.with_fingerprints(target, jobs);
        let folder = RunFolder::new(self.library, &jobs.fingerprints)?;
        let finished = self.finished(target, &jobs)?;
        let run = TrainingRun::plan(*self, target, jobs, folder, &finished)?;
        let own = |pass: &usize| self.part.is_none_or(|part| part.has(*pass));
        (0..run.manifest.passes.len()).filter(own).map(|pass| run.planned_pass(pass, &finished)).collect()
    }
}

/// The tokens of a row that a step reads: those before the last that carries loss.
fn tokens_read(row: &Example) -> usize {
    row.loss.iter().rposition(|&loss| loss).unwrap_or(row.len())
}

impl TrainingRun<'_> {
    fn planned_pass(&self, pass: usize, finished: &[String]) -> Result<PlannedPass> {
        let (jobs, config) = (self.pass_jobs(pass)?, self.trainer.config);
        let tokens = |job: &Job| {
            let epoch: usize = job.train.iter().map(tokens_read).sum();
            epoch * job.steps(config) / job.steps_per_epoch(config)
        };
        Ok(PlannedPass {
            pass,
            part: self.manifest.parts.map(|count| part_of_pass(pass, count)),
            experts: self.manifest.passes[pass].clone(),
            finished: jobs.iter().all(|job| finished.contains(&job.name)),
            rows: jobs.iter().map(|job| job.train.len()).sum(),
            steps: jobs.iter().map(|job| job.steps(config)).max().unwrap_or(0),
            tokens: jobs.iter().map(tokens).sum(),
            memory: self.target.memory(self.trainer.base, &jobs, jobs.len(), config)?.of_any_process().total(),
        })
    }
}
