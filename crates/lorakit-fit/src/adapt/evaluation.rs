//! The evaluation of adapted tasks: their test rows, under the base and under the base with the adapter.

use crate::error::{FitError, Result};
use crate::training::train_context::TrainContext;
use lorakit_adapter::Library;
use lorakit_eval::{EvalOptions, PatchedModel, Results, Sequence, evaluate};
use lorakit_lora::Patches;
use lorakit_model::TokenPrecision;
use lorakit_route::{Expert, LibraryStack, single_expert};
use lorakit_task::{Split, Task};

/// The two columns of the results: the base alone, and the base with the adapter.
pub const COLUMNS: [&str; 2] = ["base", "adapted"];

/// What happens in an evaluation.
pub enum EvaluationEvent<'a> {
    /// A column is evaluated on a task.
    Started {
        /// The column.
        column: &'a str,
        /// The task's name.
        task: &'a str,
    },
    /// That is done.
    Finished,
    /// A task has no test rows, and is left out of both columns.
    Skipped {
        /// The task's name.
        task: &'a str,
        /// Why.
        error: FitError,
    },
}

/// Evaluates `tasks` on their test rows, or on the first `limit` of them, under the base and under the library's expert of
/// the task's name.
///
/// # Errors
/// Where an adapter cannot be read, or the evaluation fails.
pub fn evaluate_adapted(
    context: &TrainContext,
    library: &Library,
    tasks: &[&Task],
    limit: Option<usize>,
    on_event: &mut dyn FnMut(EvaluationEvent),
) -> Result<Results> {
    let options = EvalOptions { split: Split::Test, limit, ..EvalOptions::default() };
    let mut results = Results::default();
    for task in tasks {
        if let Err(error) = task.rows(options.split, options.limit) {
            on_event(EvaluationEvent::Skipped { task: &task.name, error: error.into() });
            continue;
        }
        let adapter = Expert::new(&task.name, library.adapter(&task.name)?);
        let adapted = LibraryStack::new([adapter], &context.base.adaptable_sites(), context.base.device())?;
        for (column, patches) in COLUMNS.iter().zip([Patches::none(), single_expert(&adapted, 0)?]) {
            on_event(EvaluationEvent::Started { column, task: &task.name });
            let routing = &Sequence::default();
            let (base, tokenizer, precision) = (context.base, context.tokenizer, TokenPrecision::Exact);
            let model = PatchedModel { base, tokenizer, patches: &patches, routing, precision };
            results.insert(column, &task.name, &evaluate(&model, task, &options, &mut |_| ())?);
            on_event(EvaluationEvent::Finished);
        }
    }
    Ok(results)
}
