//! What a row format is.

use serde_json::Value;

use crate::error::Result;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;

/// What the label of a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowLabel {
    /// That the row is to be learned.
    Desired,
    /// That it is not, and so left out.
    Undesired,
    /// Something else.
    Other,
}

/// A known set of columns, and what they mean. A task TOML can replace either half by templates.
pub(crate) trait RowFormat: Sync {
    /// The columns of such a row, for messages: "`input` and `output`".
    fn columns(&self) -> &'static str;

    /// Whether a row is of this format.
    fn matches(&self, columns: &Columns) -> bool;

    /// The text that the model reads.
    fn prompt(&self, columns: &Columns) -> Result<String>;

    /// What the model is to write.
    fn answer(&self, columns: &Columns) -> Result<Answer>;

    /// What the row is besides, for a chat template.
    fn kind(&self, columns: &Columns) -> Result<RowKind>;

    /// The text between prompt and answer, where it does not depend on the prompt.
    fn delimiter(&self) -> Option<&'static str> {
        None
    }

    /// What the row's label says of it, if it has one.
    fn label(&self, _: &Columns) -> Option<RowLabel> {
        None
    }

    /// What of such rows is not used, as a sentence.
    fn warning(&self, columns: &Columns) -> Option<&'static str> {
        let is_filled =
            |name: &str| columns.get(name).is_some_and(|value| !matches!(value, Value::Null) && value != "");
        ["system", "history"].iter().any(|name| is_filled(name)).then_some(
            "columns `system` and `history` are not used; rows of `messages` have system messages and earlier turns",
        )
    }
}
