//! How a row of a data file becomes a prompt and its answer.
//!
//! A new row format is one file that implements [`format::RowFormat`], its `mod` line here, and one line in
//! [`known_formats::ROW_FORMATS`]. It gives one prompt and one answer as plain text, and sees no
//! tokenizer, so that it cannot apply a model's chat template. Tokens come later: see `tokenization`.

pub(crate) mod columns;
pub(crate) mod format;
pub(crate) mod instruction;
pub(crate) mod known_formats;
pub(crate) mod multiple_choice;
pub(crate) mod reader;
pub(crate) mod template;
