//! Fitted weights as the state of a router.

use super::merge_fit::{MergeFit, ensure_fittable};
use super::weight_fit_context::WeightFitContext;
use crate::error::{FitError, Result};
use crate::router::training_rows::TrainingRows;
use lorakit_route::{FittedMerge, RouterState};
use lorakit_task::Example;

/// Fits the weights of `merge` to the rows of all tasks together, and reports them as those of the router `name`: the merge
/// may have another.
pub(super) fn weights_as_state(
    name: &str,
    fit: &dyn MergeFit,
    merge: &dyn FittedMerge,
    rows: &TrainingRows,
) -> Result<RouterState> {
    let examples: Vec<Example> = rows.examples()?.into_iter().map(|row| row.example).collect();
    let context = WeightFitContext { base: rows.base(), experts: rows.experts(), seed: rows.seed() };
    ensure_fittable(merge, context, &examples)?;
    let fitted = fit.fit_merge(merge, context, &examples).unwrap_or_else(|| Err(FitError::NoFit(merge.to_string())))?;
    rows.status(&format!("{name}: {}", fitted.summary(rows.experts())));
    Ok(RouterState::new([("weights".to_owned(), fitted.weights)]))
}
