//! How a row of a data file becomes a prompt and its answer.
//!
//! A new row format is one file that implements [`format::RowFormat`], its `mod` line here, and one line in
//! [`known_formats::ROW_FORMATS`]. It gives a prompt and an answer as text, and what they are: a plain row, a conversation
//! or a text. It sees no tokenizer and no chat template. Tokens come later: see `tokenization`.

pub(crate) mod columns;
pub(crate) mod format;
pub(crate) mod instruction;
pub(crate) mod known_formats;
pub(crate) mod message;
pub(crate) mod messages;
pub(crate) mod multiple_choice;
pub(crate) mod preference;
pub(crate) mod prompt_completion;
pub(crate) mod raw_text;
pub(crate) mod reader;
pub(crate) mod sharegpt;
pub(crate) mod template;
