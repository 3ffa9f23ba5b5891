//! The loss of examples under given patches, and its gradients: what router weights and mixing coefficients minimize.

use crate::backward::backward_mode::{Activations, BackwardMode};
use crate::backward::gradients::Gradients;
use crate::backward::layerwise::{LayerwiseBackward, LossBatch};
use crate::error::{BoxError, Result};
use crate::run::memory_estimate;
use crate::train_config::{LossReduction, TrainConfig};
use candle_core::Var;
use lorakit_lora::Patches;
use lorakit_model::{Base, TokenBatch, split_by_tokens};
use lorakit_task::Example;
use std::ops::Range;

/// An example with the value of [`lorakit_lora::Sequence::expert`] for its tokens: the index of its expert or task, if the
/// patches read one.
pub type FitRow<'a> = (Option<usize>, &'a Example);

/// The loss of a set of examples. Patches must act on each token alone: of the last layer, only the tokens that predict
/// targets pass through the projections after the attention.
#[derive(Clone, Copy)]
pub struct TokenLoss<'a> {
    /// The base.
    pub base: &'a Base,
    /// How the losses of target tokens are averaged.
    pub reduction: LossReduction,
    /// What happens to the activations inside a layer.
    pub activations: Activations,
    /// Maximum tokens per forward.
    pub batch_tokens: usize,
}

impl<'a> TokenLoss<'a> {
    /// The loss that `config` describes, in batches that fit the device's memory.
    pub fn new(base: &'a Base, config: &TrainConfig) -> Self {
        Self {
            base,
            reduction: config.loss_reduction,
            activations: Activations::of_checkpointing(config.gradient_checkpointing),
            batch_tokens: memory_estimate::batch_tokens(base, config, BackwardMode::Graph),
        }
    }

    /// Adds the gradients of the loss with respect to `variables`, and returns the loss.
    ///
    /// `patches` is called once per batch, since the graph from the variables to the patches is freed with the batch.
    ///
    /// # Errors
    /// If `patches` or the forward fails.
    pub fn gradients(
        &self,
        rows: &[FitRow],
        patches: impl Fn(&TokenBatch) -> Result<Patches, BoxError> + Sync,
        variables: &[Var],
        gradients: &mut Gradients,
    ) -> Result<f64> {
        let differentiation = LayerwiseBackward { base: self.base, activations: self.activations, variables };
        let backward = |packed: &TokenBatch, weights: &[f32]| {
            let patches = patches(packed)?;
            let batch = LossBatch { packed, patches: &patches, weights, sinks: None };
            let mut gradients = Gradients::default();
            let nll = differentiation.accumulate(&batch, &mut gradients)?;
            Ok((nll, gradients))
        };
        self.sum_over_batches(rows, backward, |part| gradients.add_all(part))
    }

    /// The loss without gradients.
    pub fn value(&self, rows: &[FitRow], patches: &Patches) -> Result<f64> {
        let forward = |packed: &TokenBatch, _: &[f32]| Ok((self.base.nll_by_token(packed, patches)?.to_vec1()?, ()));
        self.sum_over_batches(rows, forward, |()| Ok(()))
    }

    /// The weighted sum of the losses of all target tokens. `batch_nll` computes them batch by batch, given the weight of
    /// each target, with a second result for `take`.
    fn sum_over_batches<T: Send>(
        &self,
        rows: &[FitRow],
        batch_nll: impl Fn(&TokenBatch, &[f32]) -> Result<(Vec<f32>, T)> + Sync,
        mut take: impl FnMut(T) -> Result<()> + Send,
    ) -> Result<f64> {
        let tokens: usize = rows.iter().map(|(_, row)| row.loss_tokens()).sum();
        let weight = |row: &Example| self.reduction.token_weight(row.loss_tokens(), (rows.len(), tokens));
        let parallel = self.base.batch_parallel(self.batch_tokens);
        let batches = split_by_tokens(rows.iter().map(|(_, r)| r.len()), parallel.tokens());
        let work = |range: &Range<usize>| {
            let rows = &rows[range.clone()];
            let mut packed = TokenBatch::default();
            rows.iter().for_each(|(expert, row)| packed.push_masked(&row.tokens, &row.loss, *expert));
            let weights: Vec<f32> = packed.targets().iter().map(|t| weight(rows[t.row as usize].1)).collect();
            let (nll, other) = batch_nll(&packed, &weights)?;
            let sum: f64 = nll.iter().zip(&weights).map(|(&l, &w)| f64::from(l) * f64::from(w)).sum();
            Ok((sum, other))
        };
        let mut sum = 0.0;
        parallel.run(&batches, work, |(batch, other)| {
            sum += batch;
            take(other)
        })?;
        Ok(sum)
    }
}
