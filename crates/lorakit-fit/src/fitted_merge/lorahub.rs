//! The fit of LoraHub: losses of rows under candidate weights, for the search that lorakit-route runs.

use super::fitted_weights::FittedWeights;
use super::merge_fit::MergeFit;
use super::weight_fit_context::WeightFitContext;
use super::weights_as_state::weights_as_state;
use crate::error::{FitError, Result};
use crate::router::router_fit::{RouterFit, as_kind};
use crate::router::training_rows::TrainingRows;
use candle_core::Tensor;
use lorakit_adapter::Matrix;
use lorakit_lora::{Patches, Sequence};
use lorakit_model::{NllSum, ScoredRow, split_by_tokens};
use lorakit_route::fixed::weight_groups::Granularity;
use lorakit_route::{Cat, FittedMerge, LoraHub, LossError, Router, RouterState, RowLoss, RowLosses, by_row_weights};
use lorakit_task::Example;
use lorakit_train::{Gradients, TokenLoss, TrainConfig};
use std::any::Any;
use std::sync::Arc;

/// The fit of [`LoraHub`], as a merge and as a router.
pub struct LoraHubFit;

impl MergeFit for LoraHubFit {
    fn fit_merge(
        &self,
        merge: &dyn FittedMerge,
        context: WeightFitContext,
        rows: &[Example],
    ) -> Option<Result<FittedWeights>> {
        let any: &dyn Any = merge;
        any.downcast_ref().map(|hub| fit(hub, context, rows))
    }
}

impl RouterFit for LoraHubFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind::<LoraHub>(router).map(|hub| weights_as_state(router.info().name, self, hub, rows))
    }
}

/// Searches for the weights under which the rows have the lowest loss.
fn fit(hub: &LoraHub, context: WeightFitContext, rows: &[Example]) -> Result<FittedWeights> {
    let patches = by_row_weights(context.experts, hub.mixing())?;
    let loss = TokenLoss::new(context.base, &TrainConfig::default());
    let found = hub.find(context.experts, &mut Losses { context, rows, patches, loss })?;
    let weights: Vec<f32> = found.weights.iter().map(|weight| *weight as f32).collect();
    Ok(FittedWeights {
        weights: Matrix::new(1, weights.len(), weights)?,
        groups: vec!["all layers".to_owned()],
        held_out: found.held_out,
        effort: found.evaluations,
    })
}

/// The losses of the rows under the base with a weight for each expert.
struct Losses<'a> {
    context: WeightFitContext<'a>,
    rows: &'a [Example],
    patches: Patches,
    loss: TokenLoss<'a>,
}

impl RowLosses for Losses<'_> {
    /// Every candidate with every row, in batches of a bounded number of tokens.
    fn losses(&mut self, candidates: &[Vec<f64>]) -> Result<Vec<Vec<RowLoss>>, LossError> {
        let weights: Vec<Arc<[f32]>> =
            candidates.iter().map(|candidate| candidate.iter().map(|weight| *weight as f32).collect()).collect();
        let n = self.rows.len();
        let pairs: Vec<(&Arc<[f32]>, &Example)> =
            weights.iter().flat_map(|weights| self.rows.iter().map(move |row| (weights, row))).collect();
        let mut losses = Vec::with_capacity(pairs.len());
        let lengths = pairs.iter().map(|(_, row)| row.len());
        for range in split_by_tokens(lengths, self.loss.batch_tokens) {
            let scored = pairs[range].iter().map(|(weights, row)| ScoredRow {
                tokens: &row.tokens,
                loss: &row.loss,
                row: Sequence { weights: Some((*weights).clone()), ..Sequence::default() },
            });
            let sums = self.context.base.nll_sums_by_token(scored, &self.patches)?;
            losses.extend(sums.into_iter().map(|NllSum { sum, tokens }| RowLoss { sum, tokens }));
        }
        Ok(losses.chunks(n).map(<[RowLoss]>::to_vec).collect())
    }

    fn gradients(&mut self, at: &[f64]) -> Result<Vec<Vec<f64>>, LossError> {
        let trainable = Cat { per: Granularity::Expert, ..Cat::default() }.trainable_weights(self.context.experts)?;
        let (_, weights) = trainable.variables().into_iter().next().ok_or(FitError::NoGradient)?;
        let at: Vec<f32> = at.iter().map(|weight| *weight as f32).collect();
        weights.set(&Tensor::from_vec(at, weights.shape(), weights.device())?)?;
        let of_row = |row: &Example| {
            let mut gradients = Gradients::default();
            let variables = std::slice::from_ref(&weights);
            self.loss.gradients(&[(None, row)], |_| Ok(trainable.patches()?), variables, &mut gradients)?;
            let gradient = gradients.of(&weights)?.ok_or(FitError::NoGradient)?;
            Ok(gradient.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).collect())
        };
        self.rows.iter().map(of_row).collect()
    }
}
