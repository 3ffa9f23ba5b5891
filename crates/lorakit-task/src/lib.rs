//! Text with answers: tasks, templates, splits and tokenised examples.
//!
//! A [`Task`] is loaded from what a user types after `--tasks`: a file of rows in a plain form, a
//! task TOML that says how to read any other, or a folder of both. Its [`Row`]s are text, a prompt
//! and an [`Answer`], and each lies in one [`Split`], decided by a hash of the row. A
//! [`Vocabulary`] is a model's tokenizer with its BOS and EOS; it turns a row into an [`Example`],
//! of which the target carries loss, or into [`ChoiceRequest`]s, one per choice, as
//! lm-evaluation-harness makes them. A [`Stream`] turns generated tokens back into text.
//!
//! What this crate does not know: tensors, models, adapters and devices. It computes no score
//! ([`Metric`] only names them), and prints nothing. Random is only what the tasks of [`skills`] are drawn
//! by, from a seed. A new task costs one
//! TOML file and no code; `configs/tasks` has some.
//!
//! ```
//! use lorakit_task::{Example, Split, Task, Vocabulary};
//!
//! # fn main() -> anyhow::Result<()> {
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("antonym.jsonl");
//! std::fs::write(&file, r#"{"instruction": "Invert.", "input": "hot", "output": "cold"}"#)?;
//!
//! let tasks = Task::load(&file.display().to_string(), None)?;
//! let row = tasks[0].rows(Split::All, None)?[0];
//! assert_eq!(tasks[0].name, "antonym");
//! assert_eq!((row.prompt.as_str(), row.target()), ("Invert.\nhot\n", "cold"));
//!
//! // A vocabulary of words; a model folder is opened by `Vocabulary::open`.
//! let words = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
//!     "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
//!     "decoder": null, "model": {"type": "WordLevel", "unk_token": "?",
//!     "vocab": {"?": 0, "hot": 1, "cold": 2, "Invert": 3, ".": 4, "END": 5}}}"#;
//! let vocabulary = Vocabulary::from_bytes(words.as_bytes(), "END")?;
//! let example = Example::encode(row, &vocabulary, 2048)?;
//! assert_eq!((example.prompt, example.target), (vec![3, 4, 1], vec![2, 5]));
//! # Ok(())
//! # }
//! ```

mod choice;
mod definition;
mod example;
mod extract;
mod field;
mod form;
mod metric;
mod pico_tokenizer;
mod row;
pub mod skills;
mod source;
mod spec;
mod special;
mod split;
mod stream;
mod task;
mod template;
mod vocabulary;

pub use choice::{ChoiceRequest, choice_requests};
pub use example::{Cut, Example, Piece};
pub use extract::Extract;
pub use metric::Metric;
pub use pico_tokenizer::{pico_tokenizer, pico_tokenizer_config};
pub use row::{Answer, Row};
pub use spec::Suite;
pub use split::Split;
pub use stream::Stream;
pub use task::{Generation, Task};
pub use vocabulary::Vocabulary;
