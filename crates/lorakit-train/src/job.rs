//! What an expert is trained on, and the order of its rows.

use crate::step_interval::StepInterval;
use crate::train_config::TrainConfig;
use lorakit_adapter::{Adapter, TaskRecord};
use lorakit_format::hash::sha256;
use lorakit_format::rng::Key;
use lorakit_task::Example;
use serde_json::Value;

/// An expert to train.
#[derive(Clone)]
pub struct Job {
    /// The expert's name.
    pub name: String,
    /// Its tasks, as its record will name them.
    pub tasks: Vec<TaskRecord>,
    /// The training rows.
    pub train: Vec<Example>,
    /// The rows that select the best weights; without any, the last weights are kept.
    pub validation: Vec<Example>,
    /// The adapter to start from; None for the initialization that all experts of the library share.
    pub init: Option<Init>,
    /// The number of experts that divide the rows of these tasks, and so their steps; 1 for an expert that has all rows
    /// of its tasks.
    pub row_shards: usize,
    /// How many of the training rows are of each task, which they are ordered by; empty if unknown.
    pub task_rows: Vec<usize>,
}

/// An adapter that training starts from.
#[derive(Clone)]
pub struct Init {
    /// The adapter, of the config's rank and scale.
    pub adapter: Adapter,
    /// Where it comes from, as the expert's record will say.
    pub origin: Value,
    /// The tasks that it was trained on.
    pub seen: Vec<TaskRecord>,
}

impl Job {
    /// An expert of these training rows, trained from the common initialization without validation; nothing is known of
    /// its tasks.
    pub fn new(name: impl Into<String>, train: Vec<Example>) -> Job {
        Job {
            name: name.into(),
            tasks: Vec::new(),
            train,
            validation: Vec::new(),
            init: None,
            row_shards: 1,
            task_rows: Vec::new(),
        }
    }

    /// Steps per epoch.
    pub fn steps_per_epoch(&self, config: &TrainConfig) -> usize {
        self.train.len().div_ceil(config.rows_per_step()).max(1)
    }

    /// Total steps: `max_steps` for each of its tasks, divided among the experts that share them, else its epochs.
    pub fn steps(&self, config: &TrainConfig) -> usize {
        match config.max_steps {
            Some(steps) => (steps * self.tasks.len().max(1)).div_ceil(self.row_shards.max(1)),
            None => config.steps_of_epochs(self.steps_per_epoch(config)),
        }
    }

    /// Steps between validations; None without validation.
    pub fn eval_interval(&self, config: &TrainConfig) -> Option<usize> {
        let every = config.eval_steps.unwrap_or_else(|| StepInterval::Steps(self.steps_per_epoch(config)));
        every.steps(self.steps(config)).filter(|_| !self.validation.is_empty())
    }

    /// The indices of the training rows of a step.
    pub fn batch(&self, config: &TrainConfig, seed: u64, step: usize) -> Vec<usize> {
        batch_indices(seed, &self.name, self.train.len(), config.rows_per_step(), step)
    }

    /// The number of a training row among those of its task, from one, with the task if there are several; None if unknown, as
    /// of a random part of all rows.
    pub(crate) fn row_name(&self, index: usize) -> Option<String> {
        if self.task_rows.is_empty() {
            return None;
        }
        if self.tasks.len() < 2 {
            return Some((index + 1).to_string());
        }
        let mut before = 0;
        for (task, rows) in self.tasks.iter().zip(&self.task_rows) {
            if index < before + rows {
                return Some(format!("{} of `{}`", index + 1 - before, task.name));
            }
            before += rows;
        }
        None
    }

    /// The keys of the dropout masks of a step's `rows` rows.
    pub fn dropout_keys(&self, seed: u64, step: usize, rows: usize) -> Vec<[u8; 32]> {
        let key = Key::new(seed, "dropout").text(&self.name).number(step as u64);
        (0..rows).map(|row| key.clone().number(row as u64).bits()).collect()
    }
}

/// The SHA-256 of rows: of their prompts and targets, each preceded by its length. A row whose loss is not on its target
/// alone adds which tokens carry loss.
pub fn rows_sha256(rows: &[Example]) -> String {
    let mut bytes = Vec::new();
    for row in rows {
        for part in [row.prompt(), row.target()] {
            bytes.extend((part.len() as u64).to_le_bytes());
            part.iter().for_each(|id| bytes.extend(id.to_le_bytes()));
        }
        if !row.has_plain_loss() {
            bytes.extend(row.loss.iter().map(|&loss| u8::from(loss)));
        }
    }
    sha256(&bytes)
}

/// The indices, among `rows` rows, of the batch of a step, of up to `per_step` rows. Each epoch has its own random order,
/// which depends only on the seed and the name.
pub fn batch_indices(seed: u64, name: &str, rows: usize, per_step: usize, step: usize) -> Vec<usize> {
    let steps_per_epoch = rows.div_ceil(per_step).max(1);
    let (epoch, within) = (step / steps_per_epoch, step % steps_per_epoch);
    let order = Key::new(seed, "order").text(name).number(epoch as u64).stream().permutation(rows);
    order.into_iter().skip(within * per_step).take(per_step).collect()
}
