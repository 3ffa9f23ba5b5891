//! The losses of the weights that an expert started from, which its own are compared with.

use crate::backward::example_losses_by_token::example_losses_by_token;
use crate::error::Result;
use crate::job::Job;
use crate::train_config::TrainConfig;
use crate::trainable::lora_stack::LoraStack;
use lorakit_lora::Patches;
use lorakit_model::Base;
use lorakit_task::Example;

/// The initial weights of a job: those of the base, with the adapter that training started from if there is one.
pub(crate) struct InitialWeights<'a> {
    /// The base, frozen.
    pub(crate) base: &'a Base,
    pub(crate) job: &'a Job,
    pub(crate) config: &'a TrainConfig,
    pub(crate) seed: u64,
    /// Maximum tokens per forward.
    pub(crate) batch_tokens: usize,
}

impl InitialWeights<'_> {
    /// The training loss on the rows of a step, counted from zero, without dropout.
    pub(crate) fn step_loss(&self, step: usize) -> Result<f64> {
        let batch = self.job.batch(self.config, self.seed, step);
        let rows: Vec<&Example> = batch.into_iter().map(|index| &self.job.train[index]).collect();
        let totals = (rows.len(), rows.iter().map(|row| row.loss_tokens()).sum());
        let share = |(row, loss): (&&Example, f64)| {
            let weight = self.config.loss_reduction.token_weight(row.loss_tokens(), totals);
            loss * row.loss_tokens() as f64 * f64::from(weight)
        };
        Ok(rows.iter().zip(self.losses(&rows)?).map(share).sum())
    }

    /// The validation loss.
    pub(crate) fn validation_loss(&self) -> Result<f64> {
        let losses = self.losses(&self.job.validation.iter().collect::<Vec<_>>())?;
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    }

    fn losses(&self, rows: &[&Example]) -> Result<Vec<f64>> {
        let patches = match &self.job.init {
            // A new adapter changes nothing.
            None => Patches::none(),
            Some(init) => {
                LoraStack::new(self.base, &[Some(init.adapter.clone())], self.config, self.seed)?.graph_patches(None)?
            }
        };
        let rows: Vec<(usize, &Example)> = rows.iter().map(|row| (0, *row)).collect();
        example_losses_by_token(self.base, &patches, &rows, self.batch_tokens)
    }
}
