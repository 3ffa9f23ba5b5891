//! Fits variables of any kind: gates, coefficients, routing logits. What the variables are, and how a loss comes of
//! them, is the caller's; here are the optimizer, its schedule and the clipping.
//!
//! Adapters have a fit of their own, [`crate::pass`], in which each expert's rows have a schedule of their own.

use crate::backward::layerwise::Gradients;
use crate::optim::lr_schedule::LrSchedule;
use crate::optim::parameter::{AdamWUpdate, Parameter};
use crate::train_config::TrainConfig;
use anyhow::{Context, Result, ensure};
use candle_core::Var;

/// Variables that share a learning rate, and whose gradients are clipped as one.
#[derive(Clone, Debug)]
pub struct ParameterGroup {
    /// The variables, of one dimension or more, contiguous and in f32, with the names that messages give them.
    pub variables: Vec<(String, Var)>,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// AdamW's decay.
    pub weight_decay: f64,
    /// The norm above which the gradient is scaled down; 0: never.
    pub max_grad_norm: f64,
}

impl ParameterGroup {
    /// Variables with the rate, decay and clipping of the settings.
    pub fn new(variables: Vec<(String, Var)>, settings: &TrainConfig) -> Self {
        Self {
            variables,
            learning_rate: settings.learning_rate,
            weight_decay: settings.weight_decay,
            max_grad_norm: settings.max_grad_norm,
        }
    }
}

/// AdamW over groups of variables, in the midst of its steps.
pub struct Optimizer {
    parameters: Vec<Parameter>,
    groups: Vec<ParameterGroup>,
    schedule: LrSchedule,
    done: usize,
}

impl Optimizer {
    /// An optimizer before its first step.
    ///
    /// # Errors
    /// Where a variable has no dimension.
    pub fn new(groups: Vec<ParameterGroup>, schedule: LrSchedule) -> Result<Self> {
        let mut parameters = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            for (name, variable) in &group.variables {
                ensure!(variable.rank() > 0, "variable {name} has no dimension; give it one of length 1");
                let all = vec![(index, 0..variable.dim(0)?)];
                parameters.push(Parameter::new(name.clone(), variable.clone(), all)?);
            }
        }
        Ok(Self { parameters, groups, schedule, done: 0 })
    }

    /// All variables, group by group.
    pub fn variables(&self) -> Vec<Var> {
        self.parameters.iter().map(|parameter| parameter.variable().clone()).collect()
    }

    /// Number of steps taken.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Moves the variables along the gradients; returns each group's norm before clipping.
    ///
    /// # Errors
    /// Where no gradient reached a variable, or one is no number; the variables are then as they were.
    pub fn step(&mut self, gradients: &Gradients) -> Result<Vec<f64>> {
        let mut squares = vec![0.0; self.groups.len()];
        let mut found = Vec::with_capacity(self.parameters.len());
        for parameter in &self.parameters {
            let gradient = gradients
                .of(parameter.variable())?
                .with_context(|| format!("no gradient reached {}", parameter.name()))?;
            parameter.add_squares(&gradient, &mut squares)?;
            found.push(gradient);
        }
        let norms: Vec<f64> = squares.into_iter().map(f64::sqrt).collect();
        ensure!(
            norms.iter().all(|norm| norm.is_finite()),
            "at step {} the gradient's norm was {norms:?}; try a lower learning_rate",
            self.done + 1
        );
        let share = self.schedule.factor(self.done);
        let update = |(group, norm): (&ParameterGroup, &f64)| {
            let limit = group.max_grad_norm;
            Some(AdamWUpdate {
                rate: group.learning_rate * share,
                clip: if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 },
                number: self.done + 1,
                weight_decay: group.weight_decay,
            })
        };
        let updates: Vec<Option<AdamWUpdate>> = self.groups.iter().zip(&norms).map(update).collect();
        for (parameter, gradient) in self.parameters.iter().zip(&found) {
            parameter.step(gradient, &updates)?;
        }
        self.done += 1;
        Ok(norms)
    }
}

/// Takes all steps of a schedule. At each, `loss` is given the step's number, from zero, and the variables; it adds
/// their gradients, as [`crate::TokenLoss::gradients`] or [`Gradients::add_loss`] do, and returns the loss. What it
/// fails with ends the fit. Returns the loss of every step.
pub fn minimize(
    groups: Vec<ParameterGroup>,
    schedule: LrSchedule,
    mut loss: impl FnMut(usize, &[Var], &mut Gradients) -> Result<f64>,
) -> Result<Vec<f64>> {
    let mut optimizer = Optimizer::new(groups, schedule)?;
    let variables = optimizer.variables();
    let mut losses = Vec::with_capacity(schedule.steps());
    for step in 0..schedule.steps() {
        let mut gradients = Gradients::default();
        let value = loss(step, &variables, &mut gradients)?;
        ensure!(value.is_finite(), "at step {} the loss was {value}; try a lower learning_rate", step + 1);
        optimizer.step(&gradients)?;
        losses.push(value);
    }
    Ok(losses)
}
