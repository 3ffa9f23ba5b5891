//! The kinds of training results, and where a library stores them.

use crate::backward::backward_mode::BackwardMode;
use crate::error::{BoxError, Result, TrainError};
use crate::job::Job;
use crate::pass::Pass;
use crate::pass::pass_context::PassContext;
use crate::run::device_memory::MemoryEstimate;
use crate::run::memory_estimate;
use crate::run::routing_store;
use crate::train_config::TrainConfig;
use crate::trainable::lora_init::init_skills;
use crate::trainable::skill_mixing::SkillDims;
use crate::trainable::skill_stack::{RoutingSpec, RowTasks, SkillStack};
use lorakit_adapter::{ExpertRecord, Library, MODEL_WEIGHTS_FILE};
use lorakit_format::hash::sha256;
use lorakit_format::safetensors::StoredTensor;
use lorakit_model::Base;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Full fine-tuning: all weights of a base are trained (FullFT of <https://arxiv.org/abs/2405.11157>).
pub struct FullFineTuning<'a> {
    /// Opens the base a second time, to be trained. Called if there is work to do and memory for it.
    pub open: &'a dyn Fn() -> Result<Base, BoxError>,
    /// Writes configuration and tokenizer into the folder of the trained weights.
    pub write_model_files: &'a dyn Fn(&Path) -> Result<(), BoxError>,
    /// The tensors of the base's files that are not trained, such as those for images; they are written beside the trained.
    pub untrained: &'a dyn Fn() -> Result<Vec<(String, StoredTensor)>, BoxError>,
}

/// Joint training of skills and their routing.
pub struct SkillTraining {
    /// How many skills, and in how many blocks they are mixed.
    pub dims: SkillDims,
    /// The task of each of the job's rows, by its index among the job's tasks.
    pub tasks: RowTasks,
}

/// The kind of result.
pub(crate) enum TrainingTarget<'a> {
    /// One adapter per job.
    Experts,
    /// All weights of the base, by one job.
    Model(&'a FullFineTuning<'a>),
    /// Skills and a routing with the name of the job.
    Skills(&'a SkillTraining),
}

/// Settings of adapters, which full fine-tuning does not use.
pub const LORA_SETTINGS: [&str; 6] = ["alpha", "dropout", "rank", "target_modules", "tie_qkv", "use_rslora"];

/// Settings that only skills use.
pub const SKILL_SETTINGS: [&str; 2] = ["routing_learning_rate", "splits"];

impl TrainingTarget<'_> {
    /// The word for one result in messages.
    pub(crate) fn noun(&self) -> &'static str {
        match self {
            Self::Experts => "expert",
            Self::Model(_) => "model",
            Self::Skills(_) => "routing",
        }
    }

    /// Whether the library has a complete result of that name.
    pub(crate) fn is_in(&self, library: &Library, name: &str) -> bool {
        match self {
            Self::Experts => library.contains(name),
            Self::Model(_) => library.contains_model(name),
            // A routing is written last; until then an older one does not match the skills.
            Self::Skills(_) => routing_store::is_complete(library, name),
        }
    }

    /// The record of the result of that name, if there is one.
    pub(crate) fn record(&self, library: &Library, name: &str) -> Result<Option<ExpertRecord>> {
        Ok(match self {
            Self::Experts => library.record(name)?,
            Self::Model(_) => library.model_record(name)?,
            Self::Skills(_) => routing_store::record(library, name)?,
        })
    }

    /// The settings that determine the result.
    pub(crate) fn fingerprint_fields(&self, config: &TrainConfig) -> Map<String, Value> {
        let mut fields = config.fingerprint_fields();
        let mut remove = |names: &[&str]| {
            names.iter().for_each(|name| {
                fields.shift_remove(*name);
            });
        };
        match self {
            Self::Experts => remove(&SKILL_SETTINGS),
            Self::Model(_) => {
                [&LORA_SETTINGS[..], &SKILL_SETTINGS].into_iter().for_each(remove);
                // Earlier versions had norms and biases decay too.
                if config.weight_decay != 0.0 {
                    fields.insert("weight_decay_of".into(), "matrices".into());
                    fields.sort_keys();
                }
            }
            Self::Skills(training) => {
                fields.insert("skills".into(), training.dims.count.into());
                fields.insert("splits".into(), training.dims.splits.into());
                fields.sort_keys();
            }
        }
        fields
    }

    /// The SHA-256 of the task of each row, where the result depends on it: the hash of the rows does not tell where a task's
    /// rows end.
    pub(crate) fn task_rows(&self) -> Option<String> {
        let Self::Skills(training) = self else { return None };
        let RowTasks { train, validation } = &training.tasks;
        Some(sha256(json!([train, validation]).to_string().as_bytes()))
    }

    /// Refuses to overwrite experts that other training made, unless training is restarted.
    pub(crate) fn check_free(&self, library: &Library, name: &str, fingerprint: &str) -> Result<()> {
        let Self::Skills(training) = self else { return Ok(()) };
        for skill in routing_store::skill_names(name, training.dims.count) {
            if !library.contains(&skill) {
                continue;
            }
            if library.record(&skill)?.is_none_or(|record| record.settings_sha256 != fingerprint) {
                return Err(TrainError::SkillNameTaken { skill, routing: name.to_owned() });
            }
        }
        Ok(())
    }

    /// How its layers are differentiated.
    pub(crate) fn backward_mode(&self, base: &Base) -> BackwardMode {
        match self {
            Self::Experts => BackwardMode::of_adapters(base),
            Self::Model(_) => BackwardMode::Weights,
            Self::Skills(_) => BackwardMode::Graph,
        }
    }

    /// Memory that a pass of `experts` jobs needs.
    pub(crate) fn memory(
        &self,
        base: &Base,
        jobs: &[Job],
        experts: usize,
        config: &TrainConfig,
    ) -> Result<MemoryEstimate> {
        let mode = self.backward_mode(base);
        match self {
            Self::Experts => memory_estimate::estimate(base, jobs, experts, config, mode),
            Self::Model(_) => Ok(memory_estimate::full_estimate(base, jobs, config)),
            Self::Skills(training) => memory_estimate::estimate(base, jobs, training.dims.count, config, mode),
        }
    }

    /// How many jobs share a pass.
    pub(crate) fn jobs_per_pass(&self, base: &Base, jobs: &[Job], config: &TrainConfig) -> Result<usize> {
        match self {
            Self::Experts => memory_estimate::experts_per_pass(base, jobs, config),
            Self::Model(_) | Self::Skills(_) => Ok(1),
        }
    }

    /// A pass before its first step.
    pub(crate) fn pass<'b>(&self, context: PassContext<'b>, jobs: &'b [Job]) -> Result<Pass<'b>> {
        match self {
            Self::Experts => Pass::new(context, jobs),
            Self::Model(_) => Pass::full(context, &jobs[0]),
            Self::Skills(SkillTraining { dims, tasks }) => {
                let PassContext { base, config, seed, .. } = context;
                let skills = init_skills(base, config, dims.count, seed)?;
                let names = task_names(&jobs[0]);
                let routing = RoutingSpec { tasks: &names, splits: dims.splits };
                let stack = SkillStack::new(base, skills, routing, config, seed)?;
                Pass::skills(context, &jobs[0], stack, tasks.clone())
            }
        }
    }

    /// Writes the result of a pass's job `index` into the library, replacing one of the same name.
    pub(crate) fn save(&self, library: &Library, pass: &Pass, index: usize, record: &ExpertRecord) -> Result<()> {
        let (name, base) = (&pass.jobs()[index].name, pass.base());
        match self {
            Self::Experts => {
                let adapter = pass.adapter(index)?.with_target_names(&base.modules()).with_task_type(base.task_type());
                Ok(library.replace(name, &adapter, Some(record))?)
            }
            Self::Model(model) => {
                pass.restore_best()?;
                library.put_model(name, record, |folder| -> Result<()> {
                    (model.write_model_files)(folder)?;
                    Ok(base.write_trained(&folder.join(MODEL_WEIGHTS_FILE), (model.untrained)()?)?)
                })
            }
            Self::Skills(training) => {
                pass.restore_best()?;
                let stack = pass.skill_stack().ok_or(TrainError::NotSkills)?;
                let skills = routing_store::skill_names(name, training.dims.count);
                for (skill, expert) in skills.iter().enumerate() {
                    let adapter =
                        stack.skill(skill)?.with_target_names(&base.modules()).with_task_type(base.task_type());
                    library.replace(expert, &adapter, Some(record))?;
                }
                // The old routing stays until now: if the process is killed, it refuses the new skills, whereas without
                // any routing other experts would be taken for skills. It also lists skills beyond the present number.
                let recorded = routing_store::recorded_skills(library, name);
                for skill in recorded.iter().filter(|skill| !skills.contains(skill) && library.contains(skill)) {
                    library.remove(skill)?;
                }
                routing_store::write(library, name, stack, &task_names(&pass.jobs()[index]), record)
            }
        }
    }

    /// The seed of the initial A, if it is the one that experts share.
    pub(crate) fn initial_seed(&self, job: &Job, seed: u64) -> Option<u64> {
        (job.init.is_none() && matches!(self, Self::Experts)).then_some(seed)
    }
}

fn task_names(job: &Job) -> Vec<String> {
    job.tasks.iter().map(|task| task.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skills_of_rows_that_another_task_has_are_others() {
        let task_rows = |train: &[usize]| {
            let tasks = RowTasks { train: train.to_vec(), validation: Vec::new() };
            TrainingTarget::Skills(&SkillTraining { dims: SkillDims { count: 2, splits: 1 }, tasks }).task_rows()
        };
        assert!(task_rows(&[0, 0, 1]).is_some());
        assert_eq!(task_rows(&[0, 0, 1]), task_rows(&[0, 0, 1]));
        assert_ne!(task_rows(&[0, 0, 1]), task_rows(&[0, 1, 1]));
        assert_eq!(TrainingTarget::Experts.task_rows(), None, "experts of earlier versions stay");
    }
}
