//! What one expert is trained on, and in which order its rows come.

use crate::train_config::TrainConfig;
use lorakit_adapter::{Adapter, TaskRecord};
use lorakit_format::hash::sha256;
use lorakit_format::rng::Key;
use lorakit_task::Example;
use serde_json::Value;

/// One expert to be trained.
#[derive(Clone)]
pub struct Job {
    /// The expert's name.
    pub name: String,
    /// Its tasks, as its record will name them.
    pub tasks: Vec<TaskRecord>,
    /// The rows that it is trained on.
    pub train: Vec<Example>,
    /// The rows that its best weights are chosen by; may be empty, and then the last weights are kept.
    pub validation: Vec<Example>,
    /// What it starts from in place of the library's common start.
    pub start: Option<Init>,
    /// How many experts share the rows of the tasks among them, and so the steps that the tasks are worth; 1 where the
    /// expert has all of its tasks' rows.
    pub row_shards: usize,
}

/// An adapter that training starts from.
#[derive(Clone)]
pub struct Init {
    /// The adapter, of the rank and scale that the settings have.
    pub adapter: Adapter,
    /// Where it is from, as the expert's record will say.
    pub origin: Value,
    /// The tasks that it has seen.
    pub seen: Vec<TaskRecord>,
}

impl Job {
    fn rows_per_update(settings: &TrainConfig) -> usize {
        settings.batch_size * settings.gradient_accumulation_steps
    }

    /// Updates that pass over all rows once.
    pub fn steps_per_epoch(&self, settings: &TrainConfig) -> usize {
        self.train.len().div_ceil(Self::rows_per_update(settings)).max(1)
    }

    /// All updates of the expert: `max_steps` for each of its tasks, divided among those who share them, else its epochs.
    pub fn steps(&self, settings: &TrainConfig) -> usize {
        match settings.max_steps {
            Some(steps) => (steps * self.tasks.len().max(1)).div_ceil(self.row_shards.max(1)),
            None => self.steps_per_epoch(settings) * settings.num_epochs,
        }
    }

    /// Updates between validations; none where there are to be none.
    pub fn eval_interval(&self, settings: &TrainConfig) -> Option<usize> {
        let every = settings.eval_steps.unwrap_or_else(|| self.steps_per_epoch(settings));
        (every > 0 && !self.validation.is_empty()).then_some(every)
    }

    /// The indices of the training rows of update `step`: each epoch has an order of its own, which depends on the seed
    /// and the expert alone.
    pub fn rows(&self, settings: &TrainConfig, seed: u64, step: usize) -> Vec<usize> {
        batch_indices(seed, &self.name, self.train.len(), Self::rows_per_update(settings), step)
    }

    /// The keys of the dropout masks of update `step`, one for each of its rows.
    pub fn dropout_keys(&self, seed: u64, step: usize, rows: usize) -> Vec<[u8; 32]> {
        let key = Key::new(seed, "dropout").text(&self.name).number(step as u64);
        (0..rows).map(|row| key.clone().number(row as u64).bits()).collect()
    }
}

/// The SHA-256 of rows: of their prompts and targets, each after its length.
pub fn rows_sha256(rows: &[Example]) -> String {
    let mut bytes = Vec::new();
    for part in rows.iter().flat_map(|row| [&row.prompt, &row.target]) {
        bytes.extend((part.len() as u64).to_le_bytes());
        part.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
    }
    sha256(&bytes)
}

/// The indices, out of `rows`, of those of update `step` where each takes `per_update`: each epoch has an order of its
/// own, which depends on the seed and the name alone.
pub fn batch_indices(seed: u64, name: &str, rows: usize, per_update: usize, step: usize) -> Vec<usize> {
    let per_epoch = rows.div_ceil(per_update).max(1);
    let (epoch, within) = (step / per_epoch, step % per_epoch);
    let order = Key::new(seed, "order").text(name).number(epoch as u64).stream().permutation(rows);
    order.into_iter().skip(within * per_update).take(per_update).collect()
}
