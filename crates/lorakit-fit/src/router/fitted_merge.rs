//! The fit of `lorahub` and `cat` as routers: the weights of the merge of the same name.

use super::training_rows::TrainingRows;
use crate::fitted_merge::fit::{WeightFit, fit_weights};
use anyhow::Result;
use lorakit_route::{FittedMerge, RouterState};
use lorakit_task::Example;

/// Fits the weights to the rows of all tasks together.
pub(super) fn fit(merge: &dyn FittedMerge, rows: &TrainingRows) -> Result<RouterState> {
    let examples: Vec<Example> = rows.examples()?.into_iter().map(|row| row.example).collect();
    let context = WeightFit { base: rows.base(), experts: rows.experts(), seed: rows.seed() };
    let fitted = fit_weights(merge, context, &examples)?;
    rows.status(&format!("{}: {}", merge.info().name, fitted.summary(rows.experts())));
    Ok(RouterState::new([("weights".to_owned(), fitted.weights)]))
}
