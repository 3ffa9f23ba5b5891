//! Tasks as text: rows with answers, splits and tokenized examples.
//!
//! A [`Task`] is loaded from what a user types after `--tasks`: a data file whose rows are of a known format, a task TOML
//! that describes any other, a folder of both, or a generated [`Suite`]. Its [`Row`]s are text, a prompt and an [`Answer`],
//! and each belongs to one [`Split`], decided by a hash of the row. A [`Tokenizer`] is a model's tokenizer with its BOS and
//! EOS. It turns a row into an [`Example`], whose target contributes to the loss, or into [`ChoiceRequest`]s, one for each
//! choice, as in lm-evaluation-harness. An [`IncrementalDecoder`] turns generated tokens back into text.
//!
//! Deliberately absent: tensors, models, adapters and devices. No score is computed here ([`Metric`] only names them), and
//! nothing is printed. Every error is a [`TaskError`].
//!
//! A new task costs one TOML file and no code; `configs/tasks` has some. A new row format is one file in `row_format`, a new
//! file format one in `source`, and each one line in the list there.
//!
//! ```
//! use lorakit_task::{Example, Split, Task, Tokenizer};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let file = folder.path().join("antonym.jsonl");
//! std::fs::write(&file, r#"{"instruction": "Invert.", "input": "hot", "output": "cold"}"#)?;
//!
//! let tasks = Task::load(&file.display().to_string(), None)?;
//! let row = tasks[0].rows(Split::All, None)?[0];
//! assert_eq!(tasks[0].name, "antonym");
//! assert_eq!((row.prompt.as_str(), row.target()), ("Invert.\nhot\n", "cold"));
//!
//! // A tokenizer of whole words; that of a model folder is opened by `Tokenizer::open`.
//! let words = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
//!     "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
//!     "decoder": null, "model": {"type": "WordLevel", "unk_token": "?",
//!     "vocab": {"?": 0, "hot": 1, "cold": 2, "Invert": 3, ".": 4, "END": 5}}}"#;
//! let tokenizer = Tokenizer::from_bytes(words.as_bytes(), "END")?;
//! let example = Example::encode(row, &tokenizer, 2048)?;
//! assert_eq!((example.prompt(), example.target()), (&[3, 4, 1][..], &[2, 5][..]));
//! # Ok(())
//! # }
//! ```

mod answer_comparison;
mod answer_pattern;
mod chat;
mod column_names;
mod common_prefix;
mod error;
mod few_shot;
mod jinja;
mod json_value;
mod loading;
mod metric;
mod optional_json;
mod python_regex;
mod row;
mod row_format;
mod row_hash;
pub mod skills;
mod source;
mod split;
mod task;
mod tokenization;

pub use answer_comparison::AnswerComparison;
pub use answer_pattern::AnswerPattern;
pub use chat::chat_template::{ChatTemplate, RenderedChat};
pub use chat::conversation::{Conversation, Message};
pub use chat::reply_span::ReplySource;
pub use column_names::ColumnNames;
pub use error::{Result, TaskError};
pub use loading::dataset_folder::{CARD, card_lists_configs, describes_dataset};
pub use loading::most_common_format::{has_data_extension, of_most_common_format};
pub use loading::rows_by_column::{DistinctRows, RowsByColumn};
pub use loading::split_files::SplitFiles;
pub use loading::suite::Suite;
pub use loading::task_loader::TaskLoader;
pub use metric::Metric;
pub use row::{Answer, Row, RowKind};
pub use source::json_lines::{JsonLine, read_json_lines};
pub use split::Split;
pub use task::{FewShotTexts, GenerationConfig, Task};
pub use tokenization::choice_request::{ChoiceRequest, choice_requests};
pub use tokenization::example::{Example, TokenView, Truncation};
pub use tokenization::gguf::gguf_tokenizer::gguf_tokenizer_files;
pub use tokenization::incremental_decoder::IncrementalDecoder;
pub use tokenization::pico_tokenizer::{pico_tokenizer, pico_tokenizer_config};
pub use tokenization::reply_opening::ReplyOpening;
pub use tokenization::row_encoding::{BosTokens, LossTokens, RowEncoding};
pub use tokenization::row_layout::RowLayout;
pub use tokenization::tokenizer::Tokenizer;
pub use tokenization::tokenizer_class::registered_tokenizer_class;
