//! Fits the weights of a library's experts to rows.

use super::weights::FittedWeights;
use super::{cat, lorahub};
use anyhow::{Context as _, Result, bail, ensure};
use lorakit_model::Base;
use lorakit_route::{CatMerge, FittedMerge, LibraryStack, LoraHub};
use lorakit_task::{Example, Split, Task, Tokenizer};
use std::any::Any;

/// What weights are fitted over.
#[derive(Clone, Copy)]
pub struct WeightFit<'a> {
    /// The base.
    pub base: &'a Base,
    /// The experts that are weighted.
    pub experts: &'a LibraryStack,
    /// The seed of the order of rows.
    pub seed: u64,
}

/// The rows that weights are fitted to: the first rows of each task's train split, as many as the method takes.
///
/// # Errors
/// Where a task has no such rows, or one cannot be tokenised.
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
pub fn fit_weights(merge: &dyn FittedMerge, context: WeightFit, rows: &[Example]) -> Result<FittedWeights> {
    ensure!(!rows.is_empty(), "there are no rows to fit weights to");
    merge.check(context.experts)?;
    let any: &dyn Any = merge;
    match (any.downcast_ref::<LoraHub>(), any.downcast_ref::<CatMerge>()) {
        (Some(hub), _) => lorahub::fit(hub, context, rows),
        (None, Some(CatMerge(cat))) => cat::fit(cat, context, rows),
        (None, None) => bail!("{merge} has no fit"),
    }
}
