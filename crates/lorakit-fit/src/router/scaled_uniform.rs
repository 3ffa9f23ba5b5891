//! The fit of `scaled_uniform`: the strength of the mean under which answers of validation rows are likeliest.

use super::lowest_loss::of_lowest_loss;
use super::router_fit::{RouterFit, as_kind};
use super::training_rows::TrainingRows;
use crate::error::Result;
use lorakit_adapter::Matrix;
use lorakit_route::fixed::scaled_uniform::SCALES;
use lorakit_route::{Router, RouterContext, RouterState, ScaledUniform};
use lorakit_task::Example;
use lorakit_train::{TokenLoss, TrainConfig, example_losses_by_token};

/// The fit of [`ScaledUniform`].
pub struct ScaledUniformFit;

impl RouterFit for ScaledUniformFit {
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>> {
        as_kind(router).map(|scaled| fit(scaled, rows))
    }
}

fn fit(scaled: &ScaledUniform, rows: &TrainingRows) -> Result<RouterState> {
    let examples: Vec<Example> = rows.examples()?.into_iter().map(|row| row.example).collect();
    let examples: Vec<(usize, &Example)> = examples.iter().map(|example| (0, example)).collect();
    let batch_tokens = TokenLoss::new(rows.base(), &TrainConfig::default()).batch_tokens;
    let loss = |scale: f32| -> Result<f64> {
        let patches = scaled.at(scale).patches(rows.experts(), &RouterContext::default())?;
        Ok(example_losses_by_token(rows.base(), &patches, &examples, batch_tokens)?.iter().sum())
    };
    let mut tried = Vec::new();
    for scale in SCALES {
        tried.push((loss(scale)?, scale));
    }
    let coarse = of_lowest_loss(&tried, 1.0);
    for factor in [f32::sqrt(0.5), f32::sqrt(2.0)] {
        tried.push((loss(coarse * factor)?, coarse * factor));
    }
    let scale = of_lowest_loss(&tried, 1.0);
    rows.status(&format!("scaled_uniform: the mean times {scale:.2}"));
    Ok(RouterState::new([("scale".to_owned(), Matrix::new(1, 1, vec![scale])?)]))
}
