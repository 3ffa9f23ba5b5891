//! What a row format is.

use serde_json::Value;

use crate::error::Result;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;

/// The label of a row of KTO, in TRL's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KtoLabel {
    /// The completion is learned.
    Desirable,
    /// It is left out.
    Undesirable,
    /// No label of KTO, such as a class.
    Other,
}

impl KtoLabel {
    /// KTO's rows have true or false, or 1 or 0, of which CSV has the texts.
    pub fn of(value: &Value) -> Option<KtoLabel> {
        match value {
            Value::Bool(true) => Some(KtoLabel::Desirable),
            Value::Bool(false) => Some(KtoLabel::Undesirable),
            Value::Number(label) => Some(KtoLabel::of_number(label.as_f64())),
            Value::String(label) => match label.trim().to_lowercase().as_str() {
                "" => None,
                "true" => Some(KtoLabel::Desirable),
                "false" => Some(KtoLabel::Undesirable),
                text => Some(KtoLabel::of_number(text.parse().ok())),
            },
            _ => Some(KtoLabel::Other),
        }
    }

    fn of_number(number: Option<f64>) -> KtoLabel {
        match number {
            Some(1.0) => KtoLabel::Desirable,
            Some(0.0) => KtoLabel::Undesirable,
            _ => KtoLabel::Other,
        }
    }
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

    /// The row's label of KTO in `label`, if that is what it means in such rows.
    fn kto_label(&self, _: &Columns) -> Option<KtoLabel> {
        None
    }

    /// What of such rows is not used, as sentences.
    fn warnings(&self, columns: &Columns) -> Vec<String> {
        self.unused_columns(columns).into_iter().collect()
    }

    /// That columns which other formats have are not used, as a sentence.
    fn unused_columns(&self, columns: &Columns) -> Option<String> {
        let is_filled =
            |name: &str| columns.get(name).is_some_and(|value| !matches!(value, Value::Null) && value != "");
        let is_conversation = || matches!(self.kind(columns), Ok(RowKind::Conversation(_)));
        let system = is_filled("system") && !is_conversation();
        let unused = match (system, is_filled("history")) {
            (false, false) => return None,
            (true, false) => "column `system` is",
            (false, true) => "column `history` is",
            (true, true) => "columns `system` and `history` are",
        };
        Some(format!("{unused} not used; rows of `messages` have system messages and earlier turns"))
    }
}
