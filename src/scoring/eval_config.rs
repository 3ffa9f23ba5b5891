//! The configuration of an evaluation, as results.json records it.

use crate::args::task_args::TaskDocument;
use lorakit_model::Base;
use lorakit_task::{AnswerPattern, RowEncoding, Split, Task};
use serde::Serialize;
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

/// The number of the rules by which rows become tokens and scores. One more where a version changes the scores of a task with
/// the same settings; earlier versions recorded none.
pub const SCORING_RULES: u32 = 2;

/// The configuration recorded in results.json.
#[derive(Serialize)]
pub struct EvalConfig<'a> {
    /// The base.
    pub base: EvaluatedBase<'a>,
    /// The dtype, if it is not that of the base's file.
    pub dtype: Option<&'static str>,
    /// All experts of the library.
    pub experts: Option<Vec<String>>,
    /// The tasks of `--fit`.
    pub fit: Vec<TaskDocument<'a>>,
    /// The library.
    pub library: Option<&'a Path>,
    /// The most rows of a task.
    pub limit: Option<NonZeroUsize>,
    /// Train rows before each prompt.
    #[serde(skip_serializing_if = "is_zero")]
    pub num_fewshot: usize,
    /// Whether activations are rounded to 8 bits.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub quantize_activations: bool,
    /// Each router as typed, with all its settings.
    pub routers: BTreeMap<&'a str, String>,
    /// The [`SCORING_RULES`].
    pub scoring_rules: u32,
    /// The seed.
    pub seed: u64,
    /// The split whose rows are scored.
    pub split: Split,
    /// The tasks.
    pub tasks: Vec<EvaluatedTask<'a>>,
    /// How rows become tokens, if not as by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encoding: Option<RowEncoding>,
}

/// A task in [`EvalConfig`].
#[derive(Serialize)]
pub struct EvaluatedTask<'a> {
    #[serde(flatten)]
    identity: TaskDocument<'a>,
    /// The number of its rows in all splits.
    rows: usize,
    /// How its answers are generated, if a metric needs them.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<GenerationSettings<'a>>,
    /// The texts around the examples before its prompts, if there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    fewshot: Option<FewShotSettings<'a>>,
}

/// How the answers of a task are generated and read, by the keys of a task TOML.
#[derive(Serialize)]
struct GenerationSettings<'a> {
    max_new_tokens: usize,
    stop: &'a [String],
    extract: Option<&'a str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ignore_case: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    regexes_to_ignore: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tolerance: Option<f64>,
}

/// The texts around examples, by the keys of a task TOML.
#[derive(Serialize)]
struct FewShotSettings<'a> {
    fewshot_description: &'a str,
    fewshot_delimiter: &'a str,
}

impl<'a> EvaluatedTask<'a> {
    /// Of a task, with so many examples before its prompts.
    pub fn of(task: &'a Task, num_fewshot: usize) -> Self {
        let comparison = &task.generation.comparison;
        let settings = GenerationSettings {
            max_new_tokens: task.generation.max_new_tokens,
            stop: &task.generation.stop,
            extract: task.generation.extract.as_ref().map(AnswerPattern::pattern),
            ignore_case: comparison.ignore_case(),
            regexes_to_ignore: comparison.regexes_to_ignore().collect(),
            tolerance: comparison.tolerance(),
        };
        let texts = FewShotSettings {
            fewshot_description: &task.few_shot.description,
            fewshot_delimiter: &task.few_shot.delimiter,
        };
        let is_generated = task.metrics.iter().any(|metric| metric.needs_generation());
        Self {
            identity: TaskDocument::of(task),
            rows: task.count(Split::All),
            generation: is_generated.then_some(settings),
            fewshot: (num_fewshot > 0).then_some(texts),
        }
    }
}

/// The base in [`EvalConfig`].
#[derive(Serialize)]
pub struct EvaluatedBase<'a> {
    name: &'a str,
    fingerprint: &'a str,
}

impl<'a> EvaluatedBase<'a> {
    /// Of a base.
    pub fn of(base: &'a Base) -> Self {
        Self { name: &base.identity().name, fingerprint: &base.identity().fingerprint }
    }
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}
