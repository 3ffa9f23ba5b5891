//! Fits the weights of a library's experts to rows.

use super::cat::CatFit;
use super::fitted_weights::FittedWeights;
use super::lorahub::LoraHubFit;
use super::merge_fit::{MergeFit, ensure_fittable};
use super::weight_fit_context::WeightFitContext;
use crate::error::{FitError, Result, WithContext as _};
use lorakit_model::Base;
use lorakit_route::FittedMerge;
use lorakit_task::{Example, Split, Task, Tokenizer};

/// The fits of all fitted merges.
pub static MERGE_FITS: &[&dyn MergeFit] = &[&LoraHubFit, &CatFit];

/// The rows that weights are fitted to: the first rows of each task's train split, as many as the method takes.
///
/// # Errors
/// Where a task has no such rows, or one cannot be tokenized.
pub fn rows(merge: &dyn FittedMerge, tasks: &[Task], base: &Base, tokenizer: &Tokenizer) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    for task in tasks {
        for row in task.rows(Split::Train, Some(merge.rows()))? {
            let example = Example::encode(row, tokenizer, base.config().max_positions);
            examples.push(example.with_context(|| format!("task `{}` ({})", task.name, task.path.display()))?);
        }
    }
    Ok(examples)
}

/// Fits weights to the rows. The same rows in the same order give the same weights.
///
/// # Errors
/// Where there is no row, the method does not allow these experts, or a loss is NaN.
pub fn fit_weights(merge: &dyn FittedMerge, context: WeightFitContext, rows: &[Example]) -> Result<FittedWeights> {
    ensure_fittable(merge, context, rows)?;
    let fitted = MERGE_FITS.iter().find_map(|fit| fit.fit_merge(merge, context, rows));
    fitted.unwrap_or_else(|| Err(FitError::NoFit(merge.to_string())))
}
