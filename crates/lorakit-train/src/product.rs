//! What a run makes, and where in a library it is kept.

use crate::job::Job;
use crate::memory::{self, Estimate};
use crate::pass::Pass;
use crate::settings::Settings;
use anyhow::Result;
use lorakit_adapter::{ExpertRecord, Library, MODEL_WEIGHTS_FILE};
use lorakit_model::Base;
use serde_json::{Value, json};
use std::path::Path;

/// A base that is to be fine-tuned with all its weights (FullFT of <https://arxiv.org/abs/2405.11157>).
pub struct Model<'a> {
    /// Opens the base once more, to be trained. It is called when there is work to do and memory for it.
    pub open: &'a dyn Fn() -> Result<Base>,
    /// Writes into a folder what makes a model folder of the weights there: configuration and tokenizer.
    pub companions: &'a dyn Fn(&Path) -> Result<()>,
}

/// The kinds of products.
pub(crate) enum Product<'a> {
    /// An adapter for each job.
    Experts,
    /// All weights of the base, by one job.
    Model(&'a Model<'a>),
}

/// Settings of adapters, which all weights do not have.
const OF_ADAPTERS: [&str; 5] = ["alpha", "dropout", "rank", "target_modules", "tie_qkv"];

impl Product<'_> {
    /// What one of them is called in messages.
    pub(crate) fn noun(&self) -> &'static str {
        match self {
            Self::Experts => "expert",
            Self::Model(_) => "model",
        }
    }

    /// Whether the library has one of that name.
    pub(crate) fn is_in(&self, library: &Library, name: &str) -> bool {
        match self {
            Self::Experts => library.contains(name),
            Self::Model(_) => library.contains_model(name),
        }
    }

    /// How the one of that name came about, where that is recorded.
    pub(crate) fn record(&self, library: &Library, name: &str) -> Result<Option<ExpertRecord>> {
        match self {
            Self::Experts => library.record(name),
            Self::Model(_) => library.model_record(name),
        }
    }

    /// What decides it beside its rows, base and seed, as JSON.
    pub(crate) fn decisive(&self, settings: &Settings) -> Value {
        let mut decisive = settings.decisive();
        if let (Self::Model(_), Some(settings)) = (self, decisive.as_object_mut()) {
            OF_ADAPTERS.iter().for_each(|name| {
                settings.shift_remove(*name);
            });
        }
        decisive
    }

    /// What the largest pass needs.
    pub(crate) fn estimate(&self, base: &Base, jobs: &[Job], experts: usize, settings: &Settings) -> Result<Estimate> {
        match self {
            Self::Experts => memory::estimate(base, jobs, experts, settings),
            Self::Model(_) => Ok(memory::full_estimate(base, jobs, settings)),
        }
    }

    /// How many jobs share a pass.
    pub(crate) fn jobs_per_pass(&self, base: &Base, jobs: &[Job], settings: &Settings) -> Result<usize> {
        match self {
            Self::Experts => memory::experts_per_pass(base, jobs, settings),
            Self::Model(_) => Ok(1),
        }
    }

    /// A pass before its first step.
    pub(crate) fn pass<'b>(
        &self,
        base: &'b Base,
        jobs: &'b [Job],
        settings: &'b Settings,
        seed: u64,
        batch_tokens: usize,
    ) -> Result<Pass<'b>> {
        match self {
            Self::Experts => Pass::new(base, jobs, settings, seed, batch_tokens),
            Self::Model(_) => Pass::full(base, &jobs[0], settings, seed, batch_tokens),
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
                let adapter = pass.adapter(index)?.named_within(&base.modules());
                library.replace(name, &adapter, Some(record))
            }
            Self::Model(model) => {
                pass.keep_best_weights()?;
                library.put_model(name, record, |folder| {
                    (model.companions)(folder)?;
                    base.write_trained(&folder.join(MODEL_WEIGHTS_FILE))
                })
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
