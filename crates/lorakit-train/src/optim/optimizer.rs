//! Minimizes a loss over arbitrary variables: router weights, mixing coefficients, routing logits. The caller defines the
//! variables and the loss; this file adds AdamW, the schedule and clipping.
//!
//! LoRA adapters train in a [`Pass`](crate::pass::Pass) instead, where each expert has a schedule of its own.

use crate::backward::gradients::Gradients;
use crate::error::{BoxError, Result, TrainError};
use crate::optim::adamw::AdamW;
use crate::optim::adamw_update::AdamWUpdate;
use crate::optim::clip::clip_factor;
use crate::optim::lr_schedule::LrSchedule;
use crate::optim::parameter::Parameter;
use crate::train_config::TrainConfig;
use candle_core::Var;

/// Variables that share a learning rate and are clipped by their common gradient norm.
#[derive(Clone, Debug)]
pub struct ParameterGroup {
    /// The variables with their names in messages; each contiguous, in f32 and with at least one dimension.
    pub variables: Vec<(String, Var)>,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// The gradient norm above which gradients are clipped; 0 disables clipping.
    pub max_grad_norm: f64,
}

impl ParameterGroup {
    /// Variables with the learning rate, weight decay and clipping of `config`.
    pub fn new(variables: Vec<(String, Var)>, config: &TrainConfig) -> Self {
        Self {
            variables,
            learning_rate: config.learning_rate,
            weight_decay: config.weight_decay,
            max_grad_norm: config.max_grad_norm,
        }
    }
}

/// AdamW with a schedule over groups of variables.
pub struct Optimizer {
    adamw: AdamW,
    groups: Vec<ParameterGroup>,
    schedule: LrSchedule,
    steps_done: usize,
}

impl Optimizer {
    /// An optimizer before its first step.
    ///
    /// # Errors
    /// If a variable is a scalar.
    pub fn new(groups: Vec<ParameterGroup>, schedule: LrSchedule) -> Result<Self> {
        let mut parameters = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            for (name, variable) in &group.variables {
                if variable.rank() == 0 {
                    return Err(TrainError::ScalarVariable { name: name.clone() });
                }
                parameters.push(Parameter::whole(name.clone(), variable.clone(), index)?);
            }
        }
        Ok(Self { adamw: AdamW::new(parameters, groups.len()), groups, schedule, steps_done: 0 })
    }

    /// All variables, group by group.
    pub fn variables(&self) -> Vec<Var> {
        self.adamw.variables()
    }

    /// One step along `gradients`. Returns each group's gradient norm before clipping.
    ///
    /// # Errors
    /// If a variable has no gradient, or a norm is not finite; the variables are unchanged then.
    pub fn step(&mut self, gradients: &Gradients) -> Result<Vec<f64>> {
        let collected = self.adamw.collect(gradients)?;
        if !collected.norms.iter().all(|norm| norm.is_finite()) {
            return Err(TrainError::NonFiniteNorm { step: self.steps_done + 1, norms: collected.norms });
        }
        let factor = self.schedule.factor(self.steps_done);
        let update = |(group, norm): (&ParameterGroup, &f64)| {
            Some(AdamWUpdate {
                lr: group.learning_rate * factor,
                clip: clip_factor(*norm, group.max_grad_norm),
                step: self.steps_done + 1,
                weight_decay: group.weight_decay,
            })
        };
        let updates: Vec<Option<AdamWUpdate>> = self.groups.iter().zip(&collected.norms).map(update).collect();
        self.adamw.step(&collected, &updates)?;
        self.steps_done += 1;
        Ok(collected.norms)
    }
}

/// Minimizes a loss for all steps of a schedule, and returns the loss of every step.
///
/// At each step, `loss` receives the step's number, from zero, and the variables; it adds their gradients, as
/// [`TokenLoss::gradients`](crate::backward::token_loss::TokenLoss::gradients) or [`Gradients::add_loss`] do, and returns
/// the loss.
///
/// # Errors
/// If `loss` fails or is not finite, or a gradient is missing or not finite.
pub fn minimize(
    groups: Vec<ParameterGroup>,
    schedule: LrSchedule,
    mut loss: impl FnMut(usize, &[Var], &mut Gradients) -> Result<f64, BoxError>,
) -> Result<Vec<f64>> {
    let mut optimizer = Optimizer::new(groups, schedule)?;
    let variables = optimizer.variables();
    let mut losses = Vec::new();
    for step in 0..schedule.steps() {
        let mut gradients = Gradients::default();
        let value = loss(step, &variables, &mut gradients)?;
        if !value.is_finite() {
            return Err(TrainError::NonFiniteLoss { step: step + 1, loss: value });
        }
        optimizer.step(&gradients)?;
        losses.push(value);
    }
    Ok(losses)
}
