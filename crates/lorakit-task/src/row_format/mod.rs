//! How a row of a data file becomes a prompt and its answer.
//!
//! A new row format is one file that implements [`format::RowFormat`], its `mod` line here, and one line in
//! [`list::ROW_FORMATS`]. Tokens come later: see `tokenization`.

pub(crate) mod columns;
pub(crate) mod format;
pub(crate) mod instruction;
pub(crate) mod list;
pub(crate) mod multiple_choice;
pub(crate) mod reader;
pub(crate) mod template;
