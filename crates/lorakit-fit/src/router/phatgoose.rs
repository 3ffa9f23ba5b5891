//! The fit of `phatgoose`: the gates of all experts are trained together, each row under its own expert. Base and
//! adapters are frozen.

use super::router_fit::{RouterFit, as_kind};
use super::training_rows::TrainingRows;
use crate::error::{FitError, Result};
use candle_core::{DType, Var};
use lorakit_adapter::Matrix;
use lorakit_route::token::phatgoose::gated_experts;
use lorakit_route::{Phatgoose, Router, RouterState};
use lorakit_task::Example;
use lorakit_train::{LrSchedule, LrSchedulerType, ParameterGroup, TokenLoss, TrainConfig, batch_indices};

/// The share of the steps in which the learning rate rises.
const WARMUP: f64 = 0.1;

/// The fit of [`Phatgoose`].
pub struct PhatgooseFit;

impl RouterFit for PhatgooseFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind(router).map(|phatgoose| fit(phatgoose, rows))
    }
}

/// Trains a gate for every expert and site.
fn fit(settings: &Phatgoose, rows: &TrainingRows) -> Result<RouterState> {
    let (base, experts) = (rows.base(), rows.experts());
    let mut own: Vec<Vec<Example>> = vec![Vec::new(); experts.len()];
    for row in rows.examples()? {
        own[row.expert.ok_or(FitError::RowWithoutExpert)?].push(row.example);
    }
    let gate = |(_, site, _): (usize, &lorakit_lora::Site, _)| {
        Ok((site.key(), Var::zeros((experts.len(), site.input), DType::F32, base.device())?))
    };
    let gates: Vec<(String, Var)> = experts.stacks().map(gate).collect::<Result<_>>()?;
    let group = ParameterGroup {
        variables: gates.clone(),
        learning_rate: settings.learning_rate,
        weight_decay: 0.0,
        max_grad_norm: 0.0,
    };
    let loss = TokenLoss::new(base, &TrainConfig::default());
    let schedule = LrSchedule::new(LrSchedulerType::Linear, WARMUP, settings.steps);
    lorakit_train::minimize(vec![group], schedule, |step, variables, gradients| {
        let mut batch = Vec::new();
        for (expert, (name, examples)) in experts.names().iter().zip(&own).enumerate() {
            let taken = batch_indices(rows.seed(), name, examples.len(), settings.batch_size, step);
            batch.extend(taken.into_iter().map(|row| (Some(expert), &examples[row])));
        }
        let patches = |_: &_| {
            let now: Vec<_> = gates.iter().map(|(_, gate)| gate.as_tensor().clone()).collect();
            Ok(gated_experts(experts, &now)?)
        };
        Ok(loss.gradients(&batch, patches, variables, gradients)?)
    })?;
    let matrix = |(name, gate): (String, Var)| -> Result<(String, Matrix)> {
        let (rows, columns) = gate.as_tensor().dims2()?;
        Ok((name, Matrix::new(rows, columns, gate.as_tensor().flatten_all()?.to_vec1::<f32>()?)?))
    };
    Ok(RouterState::new(gates.into_iter().map(matrix).collect::<Result<Vec<_>>>()?))
}
