//! The loss of rows under whatever sits in the slots, and its gradients: what gates and coefficients are fitted to.

use crate::backward::example_losses::split_by_tokens;
use crate::backward::layerwise::{Activations, Gradients, LossBatch, accumulate};
use crate::run::memory_estimate::{self, BackwardMode};
use crate::train_config::{LossReduction, TrainConfig};
use anyhow::Result;
use candle_core::Var;
use lorakit_lora::Patches;
use lorakit_model::{Base, Packed};
use lorakit_task::Example;
use std::ops::Range;

/// A row to be fitted to, with what [`lorakit_lora::Sequence::expert`] is to say of it: the number of its expert, or of
/// its task, where the patches want to know.
pub type FitRow<'a> = (Option<usize>, &'a Example);

/// How the losses of rows are taken. The patches that it is given look at one token at a time: after the attention of the
/// last layer there are none but those that predict targets.
#[derive(Clone, Copy)]
pub struct TokenLoss<'a> {
    /// The base.
    pub base: &'a Base,
    /// How the losses of target tokens become one number.
    pub reduction: LossReduction,
    /// What is done with the activations within a layer.
    pub activations: Activations,
    /// Tokens that go through the base together at most.
    pub batch_tokens: usize,
}

impl<'a> TokenLoss<'a> {
    /// The loss that settings describe, in batches that the memory holds where the base computes.
    pub fn new(base: &'a Base, settings: &TrainConfig) -> Self {
        let activations = if settings.gradient_checkpointing { Activations::Recomputed } else { Activations::Kept };
        let batch_tokens = memory_estimate::batch_tokens(base, settings, BackwardMode::Graph);
        Self { base, reduction: settings.loss_reduction, activations, batch_tokens }
    }

    /// Adds the gradients of the rows' loss with respect to `variables`, and returns the loss.
    ///
    /// `patches` makes what sits in the slots of each batch that the rows are packed into. It is called once for each,
    /// since the graph from the variables to the patches is freed with the batch.
    pub fn gradients(
        &self,
        rows: &[FitRow],
        patches: impl Fn(&Packed) -> Result<Patches> + Sync,
        variables: &[Var],
        gradients: &mut Gradients,
    ) -> Result<f64> {
        let backward = |packed: &Packed, weights: &[f32]| {
            let patches = patches(packed)?;
            let batch = LossBatch { packed, patches: &patches, weights, collected: None };
            let mut gradients = Gradients::default();
            let nll = accumulate(self.base, &batch, self.activations, variables, &mut gradients)?;
            Ok((nll, gradients))
        };
        self.over_batches(rows, backward, |part| gradients.add_all(part))
    }

    /// The rows' loss alone.
    pub fn value(&self, rows: &[FitRow], patches: &Patches) -> Result<f64> {
        self.over_batches(rows, |packed, _| Ok((self.base.nll_by_token(packed, patches)?.to_vec1()?, ())), |()| Ok(()))
    }

    /// The weighted sum of the losses of all target tokens, which `of_batch` gives batch by batch with something else
    /// for `take`.
    fn over_batches<T: Send>(
        &self,
        rows: &[FitRow],
        of_batch: impl Fn(&Packed, &[f32]) -> Result<(Vec<f32>, T)> + Sync,
        mut take: impl FnMut(T) -> Result<()>,
    ) -> Result<f64> {
        let tokens: usize = rows.iter().map(|(_, row)| row.target.len()).sum();
        let weight = |row: &Example| match self.reduction {
            LossReduction::Tokens => 1.0 / tokens as f32,
            LossReduction::Rows => 1.0 / (rows.len() * row.target.len()) as f32,
        };
        let lanes = self.base.batch_parallel(self.batch_tokens);
        let batches = split_by_tokens(rows.iter().map(|(_, r)| r.prompt.len() + r.target.len()), lanes.tokens());
        let work = |range: &Range<usize>| {
            let rows = &rows[range.clone()];
            let mut packed = Packed::default();
            rows.iter().for_each(|(expert, row)| packed.push(&row.prompt, &row.target, *expert));
            let weights: Vec<f32> = packed.targets().iter().map(|t| weight(rows[t.row as usize].1)).collect();
            let (nll, other) = of_batch(&packed, &weights)?;
            let sum: f64 = nll.iter().zip(&weights).map(|(&l, &w)| f64::from(l) * f64::from(w)).sum();
            Ok((sum, other))
        };
        let mut sum = 0.0;
        lanes.run(&batches, work, |(batch, other)| {
            sum += batch;
            take(other)
        })?;
        Ok(sum)
    }
}
