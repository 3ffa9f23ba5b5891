//! Scores of a base, with patches in its slots, on tasks.
//!
//! [`evaluate`] takes a [`PatchedModel`] (a base, its tokenizer, what sits in its slots, and what rows carry for that to read) and a task, and returns [`TaskScores`]: every metric that the task asks for with its standard error, and a
//! [`Sample`] for each row. Its parts may be called alone: [`example_losses`] for the likelihood of answers,
//! [`score_choices`] and [`chosen`] for multiple choice, [`generate`] for text, token by token.
//! [`Results`] is the document `results.json`. A choice task has three accuracies of three names: `acc` and `acc_norm`
//! equal those of lm-evaluation-harness, `acc_tok` is the one of arXiv:2405.11157.
//!
//! The choices of a question share their prompt, which the model reads once; nothing is padded. Work is grouped by a
//! number of tokens, and how it is grouped changes no score by more than rounding.
//!
//! The crate knows no router and no library: whoever calls it fills the slots. It writes no file and prints nothing;
//! progress is told to a callback.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use std::path::Path;
//! use lorakit_eval::{EvalOptions, Patches, PatchedModel, Results, Sequence, evaluate};
//! use lorakit_model::Base;
//! use lorakit_task::{Task, Tokenizer};
//!
//! let folder = Path::new("models/phi-2");
//! let base = Base::open(folder, &Default::default())?;
//! let vocabulary = Tokenizer::open(folder)?;
//! let model = PatchedModel { base: &base, vocabulary: &vocabulary, patches: &Patches::none(), routing: &Sequence::default() };
//!
//! let mut results = Results::default();
//! for task in Task::load("tasks/piqa.toml", None)? {
//!     let scores = evaluate(&model, &task, &EvalOptions::default(), &mut |progress| drop(progress))?;
//!     results.insert("base", &task.name, &scores);
//! }
//! let text = results.to_json()?;
//! # drop(text);
//! # Ok(())
//! # }
//! ```

mod eval_progress;
mod evaluate;
mod generation;
mod likelihood;
mod metrics;
mod multiple_choice;
mod patched_model;
mod results;
mod sample;
mod shared_prefix;
mod stop_text;
mod token_batches;

pub use eval_progress::{EvalProgress, EvalStage};
pub use evaluate::{EXACT_MATCH_NORMALIZED, EvalOptions, evaluate};
pub use generation::{FinishReason, GeneratedText, GenerationConfig, GenerationEvent, generate};
pub use likelihood::example_losses;
pub use lorakit_lora::{Patches, Sequence};
pub use metrics::exact_match::{exact_match, exact_match_normalized, normalized};
pub use metrics::rouge_l::rouge_l;
pub use metrics::score::{Score, TaskScores};
pub use multiple_choice::{ChoiceScore, chosen, score_choices};
pub use patched_model::{PatchedModel, PromptRouting};
pub use results::{Results, TaskResult, samples_file, samples_jsonl};
pub use sample::Sample;
