//! The fit of `tp`: a multinomial logistic regression on the base's hidden states of prompts.

use super::router_fit::{RouterFit, as_kind};
use super::training_rows::{TrainingRows, prompt_batches};
use crate::error::{FitError, Result};
use candle_core::{D, Device, Tensor, Var};
use lorakit_adapter::Matrix;
use lorakit_route::prompt::task_predictor::mean_hidden;
use lorakit_route::{Router, RouterState, TaskPredictor};
use lorakit_train::{LrSchedule, LrSchedulerType, ParameterGroup};

/// Full-batch steps. The loss is convex and the weights start at zero: nothing here is random.
const STEPS: usize = 300;
const LEARNING_RATE: f64 = 0.05;
/// AdamW's weight decay: there may be more features than rows, and the tasks may be separable.
const WEIGHT_DECAY: f64 = 0.1;

/// The fit of [`TaskPredictor`].
pub struct TaskPredictorFit;

impl RouterFit for TaskPredictorFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind(router).map(|_: &TaskPredictor| fit(rows))
    }
}

/// Fits the classifier. The class of a row is its expert.
fn fit(rows: &TrainingRows) -> Result<RouterState> {
    let base = rows.base();
    let (mut features, mut classes) = (Vec::new(), Vec::new());
    for packed in prompt_batches(&rows.examples()?) {
        let hidden = base.hidden_states(packed.ids(), &base.plan(packed.sequences()), &Default::default())?;
        features.extend(mean_hidden(&packed.sequences(), &hidden)?);
        for row in packed.sequences().iter() {
            classes.push(row.expert.ok_or(FitError::RowWithoutExpert)? as u32);
        }
    }
    let width = features.len() / classes.len().max(1);
    let (center, spread) = standardize(&mut features, width);
    let (weights, biases) = regression(features, &classes, width, rows.experts().len())?;
    let matrix = |name: &str, rows: usize, values: Vec<f32>| -> Result<(String, Matrix)> {
        Ok((name.to_owned(), Matrix::new(rows, values.len() / rows, values)?))
    };
    Ok(RouterState::new([
        matrix("centre", 1, center)?,
        matrix("spread", 1, spread)?,
        matrix("weights", rows.experts().len(), weights)?,
        matrix("biases", 1, biases)?,
    ]))
}

/// Standardizes each feature of `[rows, width]` in place; returns the means and the standard deviations.
fn standardize(features: &mut [f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let rows = (features.len() / width.max(1)) as f64;
    let column = |of: &dyn Fn(usize, f32) -> f64| -> Vec<f64> {
        let mut sums = vec![0f64; width];
        for row in features.chunks_exact(width) {
            sums.iter_mut().zip(row).enumerate().for_each(|(i, (sum, value))| *sum += of(i, *value) / rows);
        }
        sums
    };
    let center = column(&|_, value| f64::from(value));
    let spread = column(&|i, value| (f64::from(value) - center[i]).powi(2));
    // A constant feature carries no information and becomes zero.
    let spread: Vec<f32> = spread.into_iter().map(|v| if v > 0.0 { v.sqrt() as f32 } else { 1.0 }).collect();
    let center: Vec<f32> = center.into_iter().map(|v| v as f32).collect();
    for row in features.chunks_exact_mut(width) {
        row.iter_mut().zip(&center).zip(&spread).for_each(|((value, c), s)| *value = (*value - c) / s);
    }
    (center, spread)
}

/// The weights `[classes, width]` and biases of the regression.
fn regression(features: Vec<f32>, classes: &[u32], width: usize, count: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let rows = classes.len();
    let features = Tensor::from_vec(features, (rows, width), &Device::Cpu)?;
    let classes = Tensor::from_slice(classes, (rows, 1), &Device::Cpu)?;
    let zeros = |shape: (usize, usize)| Var::zeros(shape, candle_core::DType::F32, &Device::Cpu);
    let (weights, biases) = (zeros((count, width))?, zeros((1, count))?);
    let group = ParameterGroup {
        variables: vec![("weights".to_owned(), weights.clone()), ("biases".to_owned(), biases.clone())],
        learning_rate: LEARNING_RATE,
        weight_decay: WEIGHT_DECAY,
        max_grad_norm: 0.0,
    };
    lorakit_train::minimize(
        vec![group],
        LrSchedule::new(LrSchedulerType::Cosine, 0.0, STEPS),
        |_, variables, gradients| {
            let logits = features.matmul(&weights.as_tensor().t()?)?.broadcast_add(biases.as_tensor())?;
            let highest = logits.max_keepdim(D::Minus1)?.detach();
            let total = (logits.broadcast_sub(&highest)?.exp()?.sum_keepdim(D::Minus1)?.log()? + highest)?;
            let loss = (total - logits.gather(&classes, D::Minus1)?)?.mean_all()?;
            gradients.add_loss(&loss, variables)?;
            Ok(f64::from(loss.to_scalar::<f32>()?))
        },
    )?;
    let values = |variable: &Var| Ok::<_, FitError>(variable.as_tensor().flatten_all()?.to_vec1::<f32>()?);
    Ok((values(&weights)?, values(&biases)?))
}
