//! Scores a base, with patches at its sites, on tasks.
//!
//! [`evaluate`] scores a [`PatchedModel`] (a base, its tokenizer, patches, and what rows carry for them) on a task, and
//! returns [`TaskScores`]: every metric of the task with its standard error, and a [`Sample`] for each row. Its parts can be
//! called alone: [`example_losses`] for the likelihood of answers, [`score_choices`] and [`chosen`] for multiple choice,
//! [`generate`] for text. [`Results`] is the document `results.json`; [`PairedDifference`] and [`Verdict`] compare routers over
//! tasks and seeds, and [`score_chance`] is the chance level. A choice task has three accuracies with three names:
//! `acc` and `acc_norm` equal those of lm-evaluation-harness, `acc_tok` is the one of arXiv:2405.11157.
//!
//! The choices of a question share its prompt, which is processed once; nothing is padded. Batches are limited by tokens,
//! and their composition changes no score by more than rounding.
//!
//! Deliberately absent: routers and libraries; the caller supplies the patches. No file is written and nothing is printed;
//! progress goes to a callback.
//!
//! ```
//! use lorakit_eval::{Results, Score, exact_match, rouge_l};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! assert!(exact_match(" Paris\n", &["Paris"]));
//! assert_eq!(rouge_l("the cat sat", &["the cat sat"])?, 1.0);
//! let acc = Score::mean(&[1.0, 0.0, 1.0, 1.0]).ok_or("no rows")?;
//! assert_eq!((acc.value, acc.stderr), (0.75, Some(0.25)));
//!
//! let text = r#"{"results": {"base": {"boolq": {"n": 4, "metrics": {"acc": {"value": 0.75, "stderr": 0.25}}}}}}"#;
//! let results = Results::parse(text)?;
//! assert_eq!(results.get("base", "boolq").map(|task| task.metrics["acc"]), Some(acc));
//! # Ok(())
//! # }
//! ```
//!
//! A model on a task:
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use lorakit_eval::{EvalOptions, Patches, PatchedModel, Results, Sequence, evaluate};
//! use lorakit_model::{Base, TokenPrecision};
//! use lorakit_task::{Task, Tokenizer};
//! use std::path::Path;
//!
//! let folder = Path::new("models/phi-2");
//! let base = Base::open(folder, &Default::default())?;
//! let tokenizer = Tokenizer::open(folder)?;
//! let model = PatchedModel {
//!     base: &base,
//!     tokenizer: &tokenizer,
//!     patches: &Patches::none(),
//!     routing: &Sequence::default(),
//!     precision: TokenPrecision::Exact,
//! };
//!
//! let mut results = Results::default();
//! for task in Task::load("tasks/piqa.toml", None)? {
//!     let scores = evaluate(&model, &task, &EvalOptions::default(), &mut |_| ())?;
//!     results.insert("base", &task.name, &scores);
//! }
//! print!("{}", results.to_json()?);
//! # Ok(())
//! # }
//! ```

mod chance_level;
mod choice_scores;
mod continuous_batch;
mod error;
mod eval_progress;
mod evaluate;
mod generate_options;
mod generated_text;
mod generation;
mod growing_row;
mod likelihood;
mod metrics;
mod patched_model;
mod results;
mod sample;
mod shared_prefix;
mod statistics;
mod stop_text;
mod token_batches;
mod token_budget;
mod truncated_rows;

pub use chance_level::score_chance;
pub use choice_scores::{ChoiceScore, chosen, score_choices};
pub use error::{EvalError, Result, RoutingError};
pub use eval_progress::{EvalProgress, EvalStage};
pub use evaluate::{EvalOptions, evaluate};
pub use generate_options::GenerateOptions;
pub use generated_text::{FinishReason, GeneratedText};
pub use generation::{GenerationEvent, generate};
pub use likelihood::example_losses;
pub use lorakit_lora::{Patches, Sequence};
pub use metrics::exact_match::{exact_match, exact_match_by, exact_match_normalized};
pub use metrics::rouge_l::rouge_l;
pub use metrics::score::{Score, TaskScores};
pub use patched_model::{PatchedModel, PromptRouting};
pub use results::{Results, TaskResult, samples_file, samples_jsonl};
pub use sample::Sample;
pub use statistics::paired_difference::PairedDifference;
pub use statistics::verdict::{DECISIVE_TASKS, Verdict};
pub use token_budget::TokenBudget;
pub use truncated_rows::TruncatedRows;
