//! The fit of CAT (<https://arxiv.org/abs/2410.13025>): gradient steps on the weights of the experts, base and adapters
//! frozen. Some rows are held out, and the weights with the lowest loss on these are kept.

use super::fitted_weights::FittedWeights;
use super::merge_fit::MergeFit;
use super::weight_fit_context::WeightFitContext;
use super::weights_as_state::weights_as_state;
use crate::error::{FitError, Result};
use crate::router::router_fit::{RouterFit, as_kind};
use crate::router::training_rows::TrainingRows;
use candle_core::Tensor;
use lorakit_lora::Patches;
use lorakit_route::{Cat, CatMerge, FittedMerge, HeldOutLosses, Router, RouterState, TrainableWeights};
use lorakit_task::Example;
use lorakit_train::{FitRow, ParameterGroup, TokenLoss, TrainConfig, batch_indices, example_losses_by_token};
use std::any::Any;

/// One of so many rows is held out of the fit.
const HELD_OUT: usize = 5;
/// Rows of a step.
const BATCH: usize = 16;
/// How often the held-out rows are evaluated.
const EVALUATIONS: usize = 10;

/// The fit of [`CatMerge`], and of [`Cat`] as a router.
pub struct CatFit;

impl MergeFit for CatFit {
    fn fit_merge(
        &self,
        merge: &dyn FittedMerge,
        context: WeightFitContext,
        rows: &[Example],
    ) -> Option<Result<FittedWeights>> {
        let any: &dyn Any = merge;
        any.downcast_ref().map(|CatMerge(cat)| fit(cat, context, rows))
    }
}

impl RouterFit for CatFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind::<Cat>(router).map(|cat| weights_as_state(router.info().name, self, &CatMerge(cat.clone()), rows))
    }
}

/// Fits the weights.
fn fit(cat: &Cat, context: WeightFitContext, rows: &[Example]) -> Result<FittedWeights> {
    let weights = cat.trainable_weights(context.experts)?;
    let (mut held_out, mut fitted) = (Vec::new(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        if index % HELD_OUT == HELD_OUT - 1 { held_out.push(row) } else { fitted.push(row) }
    }
    let mut selection = Selection::new(context, &weights, held_out)?;
    if cat.steps > 0 {
        steps(cat, context, &weights, &fitted, &mut selection)?;
    }
    selection.set_best(&weights)?;
    Ok(FittedWeights {
        weights: weights.values()?,
        groups: cat.groups(context.experts),
        held_out: selection.held_out(),
        effort: selection.best_step,
    })
}

fn steps(
    cat: &Cat,
    context: WeightFitContext,
    weights: &TrainableWeights,
    rows: &[&Example],
    selection: &mut Selection,
) -> Result<()> {
    let settings = TrainConfig { learning_rate: cat.learning_rate, max_grad_norm: 0.0, ..TrainConfig::default() };
    let schedule = settings.schedule(cat.steps);
    let loss = TokenLoss::new(context.base, &settings);
    let every = cat.steps.div_ceil(EVALUATIONS);
    lorakit_train::minimize(
        vec![ParameterGroup::new(weights.variables(), &settings)],
        schedule,
        |step, variables, gradients| {
            if step > 0 && step.is_multiple_of(every) {
                selection.evaluate(step, weights)?;
            }
            let own = batch_indices(context.seed, "cat", rows.len(), BATCH, step);
            let own: Vec<FitRow> = own.into_iter().map(|row| (None, rows[row])).collect();
            Ok(loss.gradients(&own, |_| Ok(weights.patches()?), variables, gradients)?)
        },
    )?;
    selection.evaluate(cat.steps, weights)
}

/// The held-out rows, and the variables that did best on them. The best of a few evaluations is a slightly optimistic
/// estimate.
struct Selection<'a> {
    context: WeightFitContext<'a>,
    rows: Vec<&'a Example>,
    /// Losses with no expert.
    base: Vec<f64>,
    /// Losses at the best step.
    best: Vec<f64>,
    best_step: usize,
    values: Vec<Tensor>,
}

impl<'a> Selection<'a> {
    fn new(context: WeightFitContext<'a>, weights: &TrainableWeights, rows: Vec<&'a Example>) -> Result<Self> {
        let mut selection =
            Self { context, rows, base: Vec::new(), best: Vec::new(), best_step: 0, values: Vec::new() };
        selection.base = selection.losses(&Patches::none())?;
        selection.evaluate(0, weights)?;
        Ok(selection)
    }

    fn losses(&self, patches: &Patches) -> Result<Vec<f64>> {
        let rows: Vec<(usize, &Example)> = self.rows.iter().map(|row| (0, *row)).collect();
        let batch_tokens = TokenLoss::new(self.context.base, &TrainConfig::default()).batch_tokens;
        Ok(example_losses_by_token(self.context.base, patches, &rows, batch_tokens)?)
    }

    /// Keeps the variables if they are better than before, or if no rows are held out.
    fn evaluate(&mut self, step: usize, weights: &TrainableWeights) -> Result<()> {
        let losses = self.losses(&weights.patches()?)?;
        let sum = |losses: &[f64]| losses.iter().sum::<f64>();
        if !sum(&losses).is_finite() {
            return Err(FitError::NonFiniteLoss(step));
        }
        if self.values.is_empty() || self.rows.is_empty() || sum(&losses) < sum(&self.best) {
            let copies = weights.variables().iter().map(|(_, variable)| variable.copy()).collect::<Result<_, _>>()?;
            (self.best, self.best_step, self.values) = (losses, step, copies);
        }
        Ok(())
    }

    fn set_best(&self, weights: &TrainableWeights) -> Result<()> {
        weights.variables().iter().zip(&self.values).try_for_each(|((_, variable), value)| Ok(variable.set(value)?))
    }

    fn held_out(&self) -> Option<HeldOutLosses> {
        (!self.rows.is_empty()).then(|| HeldOutLosses::of(&self.base, &self.best))
    }
}
