//! A run of training as the user sees it: progress, a table of what came of it, and how the command ends.

use crate::base_source::Located;
use crate::companions;
use crate::context::Context;
use crate::interrupt::Interrupted;
use crate::output::{counted, number, table};
use crate::plan::{Plan, each_job};
use crate::progress;
use anyhow::{Result, anyhow, ensure};
use lorakit_adapter::{ExpertRecord, Library};
use lorakit_model::Base;
use lorakit_task::{Split, Tokenizer};
use lorakit_train::{
    FullFineTuning, Job, RowTasks, RunOptions, RunSummary, SkillDims, SkillTraining, TrainConfig, routing_store,
};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;

/// What all training of one command shares.
pub struct World<'a> {
    /// Where the base is.
    pub place: &'a Located,
    /// The base as it is.
    pub base: &'a Base,
    /// Its tokenizer.
    pub vocabulary: &'a Tokenizer,
    /// Whether what exists with other settings is trained anew.
    pub restart: bool,
    /// What every command is given.
    pub context: &'a Context,
}

/// What training makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Made {
    /// Adapters.
    Experts,
    /// A model, of one plan.
    Model,
    /// Skills and their routing, of one plan.
    Skills(SkillDims),
}

/// What came of a run.
pub struct Trained {
    experts: Vec<Row>,
    summary: RunSummary,
    /// Plans whose rows cannot be trained on, with the reason.
    refused: Vec<(String, String)>,
}

/// An expert or model in the final table.
#[derive(Serialize)]
struct Row {
    expert: String,
    status: &'static str,
    tasks: Vec<String>,
    rows: usize,
    steps: usize,
    train_loss: Option<f64>,
    validation_loss: Option<f64>,
}

impl World<'_> {
    /// Trains what the library, which is locked, does not have yet. A plan whose rows cannot be trained on does not keep
    /// the others from being carried out.
    pub fn train(&self, made: Made, library: &Library, plans: &[Plan], settings: &TrainConfig) -> Result<Trained> {
        let (mut ready, mut all, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let each = each_job(plans, self.base, self.vocabulary, settings, self.context);
        for (plan, job) in plans.iter().zip(each) {
            match job {
                Ok(job) => {
                    ready.push(plan.clone());
                    all.push(job);
                }
                // Where nothing can be trained, the first reason is the command's.
                Err(error) if plans.len() == 1 => return Err(error),
                Err(error) => refused.push((plan.name.clone(), error)),
            }
        }
        if ready.is_empty() {
            return refused.into_iter().next().map_or_else(|| Err(anyhow!("no expert to train")), |(_, why)| Err(why));
        }
        let refused: Vec<(String, String)> =
            refused.into_iter().map(|(name, why)| (name, format!("{why:#}"))).collect();
        refused.iter().for_each(|(name, why)| self.context.output.notice(format!("{name} is not trained: {why}")));
        let mut trained = self.train_jobs(made, library, &ready, all, settings)?;
        trained.refuse(plans, refused);
        Ok(trained)
    }

    /// The same with the plans' rows at hand.
    pub fn train_jobs(
        &self,
        made: Made,
        library: &Library,
        plans: &[Plan],
        mut jobs: Vec<Job>,
        settings: &TrainConfig,
    ) -> Result<Trained> {
        ensure!(made == Made::Experts || jobs.len() == 1, "one plan is expected, found {}", jobs.len());
        let rows: Vec<usize> = jobs.iter().map(|job| job.train.len()).collect();
        let stop = self.context.interrupt.hold();
        let options = RunOptions { seed: self.context.seed, restart: self.restart, stop: &stop };
        let mut bars = progress::Training::new(self.context.output);
        let watch = &mut |event: lorakit_train::TrainEvent| bars.watch(event);
        let summary = match made {
            Made::Experts => lorakit_train::train_experts(self.base, library, jobs, settings, &options, watch)?,
            Made::Model => {
                let open = || self.place.trainable(self.context);
                let companions = |folder: &Path| companions::write_for_f32(self.place, folder);
                let model = FullFineTuning { open: &open, companions: &companions };
                lorakit_train::train_model(self.base, &model, library, jobs.remove(0), settings, &options, watch)?
            }
            Made::Skills(form) => {
                let of = |split| task_of_rows(&plans[0], split);
                let skills = SkillTraining {
                    form,
                    rows: RowTasks { train: of(Split::Train), validation: of(Split::Validation) },
                };
                lorakit_train::train_skills(self.base, &skills, library, jobs.remove(0), settings, &options, watch)?
            }
        };
        bars.end();
        if !summary.kept.is_empty() {
            // A process that was killed may have put them in and not come to this.
            library.record_base()?;
        }
        let row = |(plan, rows): (&Plan, &usize)| row(made, library, plan, *rows, &summary);
        let experts = plans.iter().zip(&rows).map(row).collect::<Result<_>>()?;
        Ok(Trained { experts, summary, refused: Vec::new() })
    }
}

/// The number of the task of each of a plan's rows, which stand task by task.
fn task_of_rows(plan: &Plan, split: Split) -> Vec<usize> {
    plan.tasks.iter().enumerate().flat_map(|(number, task)| std::iter::repeat_n(number, task.count(split))).collect()
}

/// A line of the table, from what is recorded.
fn row(made: Made, library: &Library, plan: &Plan, rows: usize, summary: &RunSummary) -> Result<Row> {
    let status = match &plan.name {
        name if summary.trained.contains(name) => "trained",
        name if summary.kept.contains(name) => "finished before",
        name if summary.failed.iter().any(|(failed, _)| failed == name) => "failed",
        _ => "unfinished",
    };
    let record: Option<ExpertRecord> = match (status, made) {
        ("trained" | "finished before", Made::Experts) => library.record(&plan.name)?,
        ("trained" | "finished before", Made::Model) => library.model_record(&plan.name)?,
        ("trained" | "finished before", Made::Skills(_)) => routing_store::record(library, &plan.name)?,
        _ => None,
    };
    let losses = record.map_or(Value::Null, |record| record.losses);
    Ok(Row {
        expert: plan.name.clone(),
        status,
        tasks: plan.tasks.iter().map(|task| task.name.clone()).collect(),
        rows,
        steps: losses["train"].as_array().map_or(0, Vec::len),
        train_loss: losses["train"].as_array().and_then(|losses| losses.last()?.as_f64()),
        validation_loss: losses["best"][1].as_f64(),
    })
}

impl Trained {
    /// Tells of plans that could not be carried out, in the order in which all were given.
    fn refuse(&mut self, plans: &[Plan], refused: Vec<(String, String)>) {
        let failed = |plan: &Plan| Row {
            expert: plan.name.clone(),
            status: "failed",
            tasks: plan.tasks.iter().map(|task| task.name.clone()).collect(),
            rows: plan.tasks.iter().map(|task| task.count(Split::Train)).sum(),
            steps: 0,
            train_loss: None,
            validation_loss: None,
        };
        let is_refused = |plan: &&Plan| refused.iter().any(|(name, _)| *name == plan.name);
        self.experts.extend(plans.iter().filter(is_refused).map(failed));
        self.experts.sort_by_key(|row| plans.iter().position(|plan| plan.name == row.expert));
        self.refused = refused;
    }

    /// The names of what is finished.
    pub fn finished(&self) -> impl Iterator<Item = &str> {
        let finished = |row: &&Row| matches!(row.status, "trained" | "finished before");
        self.experts.iter().filter(finished).map(|row| row.expert.as_str())
    }

    /// Whether all there was to be trained is there.
    pub fn is_whole(&self) -> bool {
        !self.summary.stopped && self.summary.failed.is_empty() && self.refused.is_empty()
    }

    /// The run as JSON.
    pub fn document(&self, library: &Library) -> Value {
        // Where nothing had to be trained there is no run.
        let run = (!self.summary.folder.as_os_str().is_empty()).then_some(&self.summary.folder);
        json!({ "library": library.root(), "run": run, "stopped": self.summary.stopped, "experts": self.experts })
    }

    /// The run as a table.
    pub fn table(&self) -> String {
        let cells = |row: &Row| {
            let (train, validation) = (number(row.train_loss, 4), number(row.validation_loss, 4));
            let (name, status) = (row.expert.clone(), row.status.to_owned());
            vec![name, row.rows.to_string(), row.steps.to_string(), train, validation, status]
        };
        table(["expert", "rows", "steps", "train loss", "best validation loss", ""], self.experts.iter().map(cells))
    }

    /// How the command ends.
    pub fn outcome(&self) -> Result<()> {
        if self.summary.stopped {
            return Err(Interrupted(
                "finished experts are in the library; the same command again goes on from here".to_owned(),
            )
            .into());
        }
        let failed = self.refused.iter().chain(&self.summary.failed);
        let failed: Vec<String> = failed.map(|(name, why)| format!("`{name}`: {why}")).collect();
        // Rows that are not there stay away.
        let again = if self.summary.failed.is_empty() { "" } else { "; --restart would train what failed anew" };
        ensure!(
            failed.is_empty(),
            "{} failed, and what else was finished is in the library: {}{again}",
            counted(failed.len(), "expert"),
            failed.join("; ")
        );
        Ok(())
    }
}
