//! What a run makes, and where in a library it is kept.

use crate::job::Job;
use crate::pass::Pass;
use crate::run::memory_estimate::{self, BackwardMode, MemoryEstimate};
use crate::run::routing_store;
use crate::train_config::TrainConfig;
use crate::trainable::skill_stack::{RowTasks, SkillDims, SkillStack, init_skills};
use anyhow::{Context, Result, ensure};
use lorakit_adapter::{ExpertRecord, Library, MODEL_WEIGHTS_FILE};
use lorakit_model::Base;
use serde_json::{Value, json};
use std::path::Path;

/// A base that is to be fine-tuned with all its weights (FullFT of <https://arxiv.org/abs/2405.11157>).
pub struct FullFineTuning<'a> {
    /// Opens the base once more, to be trained. It is called when there is work to do and memory for it.
    pub open: &'a dyn Fn() -> Result<Base>,
    /// Writes into a folder what makes a model folder of the weights there: configuration and tokenizer.
    pub companions: &'a dyn Fn(&Path) -> Result<()>,
}

/// Skills that are to be trained together, with their routing.
pub struct SkillTraining {
    /// How many.
    pub form: SkillDims,
    /// The task of each of the job's rows, by its place among the job's tasks.
    pub rows: RowTasks,
}

/// The kinds of products.
pub(crate) enum TrainingTarget<'a> {
    /// An adapter for each job.
    Experts,
    /// All weights of the base, by one job.
    Model(&'a FullFineTuning<'a>),
    /// Skills and a routing of the job's name.
    Skills(&'a SkillTraining),
}

/// Settings of adapters, which all weights do not have.
pub const LORA_SETTINGS: [&str; 5] = ["alpha", "dropout", "rank", "target_modules", "tie_qkv"];

/// Settings of skills, which nothing else has.
pub const SKILL_SETTINGS: [&str; 2] = ["routing_learning_rate", "splits"];

impl TrainingTarget<'_> {
    /// What one of them is called in messages.
    pub(crate) fn noun(&self) -> &'static str {
        match self {
            Self::Experts => "expert",
            Self::Model(_) => "model",
            Self::Skills(_) => "routing",
        }
    }

    /// Whether the library has one of that name.
    pub(crate) fn is_in(&self, library: &Library, name: &str) -> bool {
        match self {
            Self::Experts => library.contains(name),
            Self::Model(_) => library.contains_model(name),
            // It is written last, when all skills are there, and until then an old one does not fit them.
            Self::Skills(_) => routing_store::is_whole(library, name),
        }
    }

    /// How the one of that name came about, where that is recorded.
    pub(crate) fn record(&self, library: &Library, name: &str) -> Result<Option<ExpertRecord>> {
        match self {
            Self::Experts => library.record(name),
            Self::Model(_) => library.model_record(name),
            Self::Skills(_) => routing_store::record(library, name),
        }
    }

    /// What decides it beside its rows, base and seed, as JSON.
    pub(crate) fn fingerprint_fields(&self, settings: &TrainConfig) -> Value {
        let mut fingerprint_fields = settings.fingerprint_fields();
        let Some(settings) = fingerprint_fields.as_object_mut() else { return fingerprint_fields };
        let mut without = |names: &[&str]| {
            names.iter().for_each(|name| {
                settings.shift_remove(*name);
            });
        };
        match self {
            Self::Experts => without(&SKILL_SETTINGS),
            Self::Model(_) => [&LORA_SETTINGS[..], &SKILL_SETTINGS].into_iter().for_each(without),
            Self::Skills(plan) => {
                settings.insert("skills".into(), plan.form.count.into());
                settings.insert("splits".into(), plan.form.splits.into());
                settings.sort_keys();
            }
        }
        fingerprint_fields
    }

    /// Refuses to write over experts that this training did not make, unless it is to be done anew.
    pub(crate) fn ensure_free(&self, library: &Library, name: &str, identity: &str, restart: bool) -> Result<()> {
        let Self::Skills(plan) = self else { return Ok(()) };
        for skill in routing_store::skill_names(name, plan.form.count) {
            if restart || !library.contains(&skill) {
                continue;
            }
            let own = library.record(&skill)?.is_some_and(|record| record.settings_sha256 == identity);
            ensure!(
                own,
                "expert '{skill}' is in the library, and is no skill of this {name}; --restart would replace it"
            );
        }
        Ok(())
    }

    /// How its layers are taken back.
    pub(crate) fn way(&self, base: &Base) -> BackwardMode {
        match self {
            Self::Experts => BackwardMode::of_adapters(base),
            Self::Model(_) => BackwardMode::Weights,
            Self::Skills(_) => BackwardMode::Graph,
        }
    }

    /// What the largest pass needs.
    pub(crate) fn estimate(
        &self,
        base: &Base,
        jobs: &[Job],
        experts: usize,
        settings: &TrainConfig,
    ) -> Result<MemoryEstimate> {
        match self {
            Self::Experts => memory_estimate::estimate(base, jobs, experts, settings, self.way(base)),
            Self::Model(_) => Ok(memory_estimate::full_estimate(base, jobs, settings)),
            Self::Skills(plan) => memory_estimate::estimate(base, jobs, plan.form.count, settings, self.way(base)),
        }
    }

    /// How many jobs share a pass.
    pub(crate) fn jobs_per_pass(&self, base: &Base, jobs: &[Job], settings: &TrainConfig) -> Result<usize> {
        match self {
            Self::Experts => memory_estimate::experts_per_pass(base, jobs, settings),
            Self::Model(_) | Self::Skills(_) => Ok(1),
        }
    }

    /// A pass before its first step.
    pub(crate) fn pass<'b>(
        &self,
        base: &'b Base,
        jobs: &'b [Job],
        settings: &'b TrainConfig,
        seed: u64,
        batch_tokens: usize,
    ) -> Result<Pass<'b>> {
        match self {
            Self::Experts => Pass::new(base, jobs, settings, seed, batch_tokens),
            Self::Model(_) => Pass::full(base, &jobs[0], settings, seed, batch_tokens),
            Self::Skills(SkillTraining { form, rows }) => {
                let skills = init_skills(base.sites(), settings, form.count, seed)?;
                let tasks = task_names(&jobs[0]);
                let stack = SkillStack::new(base.sites(), base.device(), skills, form.splits, &tasks, settings, seed)?;
                Pass::skills(base, &jobs[0], stack, rows.clone(), settings, seed, batch_tokens)
            }
        }
    }

    /// Puts what a job of a pass has become into the library, in place of the one of its name.
    pub(crate) fn keep(
        &self,
        library: &Library,
        base: &Base,
        pass: &Pass,
        index: usize,
        record: &ExpertRecord,
    ) -> Result<()> {
        let name = &pass.jobs()[index].name;
        match self {
            Self::Experts => {
                let adapter = pass.adapter(index)?.with_target_names(&base.modules());
                library.replace(name, &adapter, Some(record))
            }
            Self::Model(model) => {
                pass.keep_best_weights()?;
                library.put_model(name, record, |folder| {
                    (model.companions)(folder)?;
                    base.write_trained(&folder.join(MODEL_WEIGHTS_FILE))
                })
            }
            Self::Skills(plan) => {
                pass.keep_best_weights()?;
                let stack = pass.trained_skills().context("the pass trained no skills")?;
                let names = routing_store::skill_names(name, plan.form.count);
                for (skill, expert) in names.iter().enumerate() {
                    library.replace(expert, &stack.skill(skill)?.with_target_names(&base.modules()), Some(record))?;
                }
                // An old routing stays until now: a kill leaves one that refuses the skills, where none at all would
                // have any experts be taken for skills. It also knows those of an earlier training of more of them.
                let left = routing_store::skills(library, name);
                for skill in left.iter().filter(|skill| !names.contains(skill) && library.contains(skill)) {
                    library.remove(skill)?;
                }
                routing_store::write(library, name, stack, &task_names(&pass.jobs()[index]), record)
            }
        }
    }

    /// The seed of the A that a job starts from, where it is one that experts share.
    pub(crate) fn initial_seed(&self, job: &Job, seed: u64) -> Option<u64> {
        (job.start.is_none() && matches!(self, Self::Experts)).then_some(seed)
    }

    /// The losses that a record keeps.
    pub(crate) fn losses(pass: &Pass, index: usize) -> Value {
        let progress = &pass.progress()[index];
        json!({
            "train": progress.losses,
            "grad_norm": progress.norms,
            "validation": progress.validation,
            "best": progress.best,
        })
    }
}

fn task_names(job: &Job) -> Vec<String> {
    job.tasks.iter().map(|task| task.name.clone()).collect()
}
