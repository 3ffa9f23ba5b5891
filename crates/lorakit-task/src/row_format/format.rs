//! What a row format is.

use serde_json::Value;

use crate::error::Result;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;

/// The `label` of a row of KTO, in TRL's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KtoLabel {
    /// The completion is learned.
    Desirable,
    /// It is left out.
    Undesirable,
    /// No label of KTO, such as a class.
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

    /// The row's label of KTO, if it has one.
    fn kto_label(&self, _: &Columns) -> Option<KtoLabel> {
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
