//! The row formats that are recognized without a task TOML.

use crate::row_format::columns::Columns;
use crate::row_format::format::RowFormat;
use crate::row_format::instruction::Instruction;
use crate::row_format::messages::Messages;
use crate::row_format::multiple_choice::MultipleChoice;
use crate::row_format::preference::Preference;
use crate::row_format::prompt_completion::PromptCompletion;
use crate::row_format::raw_text::RawText;
use crate::row_format::sharegpt::ShareGpt;

/// Every row format; a row is of the first that matches.
static ROW_FORMATS: &[&dyn RowFormat] =
    &[&MultipleChoice, &Preference, &Messages, &ShareGpt, &PromptCompletion, &RawText, &Instruction];

/// The format of a row. A row of no known format counts as [`Instruction`], whose errors name the missing column.
pub(crate) fn format_of(columns: &Columns) -> &'static dyn RowFormat {
    *ROW_FORMATS.iter().find(|format| format.matches(columns)).unwrap_or(&(&Instruction as &dyn RowFormat))
}

/// What rows may look like, as a sentence.
pub(crate) fn expected_columns() -> String {
    let formats: Vec<_> = ROW_FORMATS.iter().map(|format| format.columns()).collect();
    format!(
        "Without a task TOML a row has {}; --columns gives these names to other columns, and a task TOML makes `prompt` and `target` of any",
        formats.join(", or ")
    )
}
