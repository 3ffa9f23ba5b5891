//! Rows of `input`, `choices` and `answer`.

use serde_json::Value;

use crate::error::{At, Result, TaskError};
use crate::json_value;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::RowFormat;
use crate::row_format::instruction;

/// `choices`, a list of texts, and `answer`, the index or the text of the right one.
pub(crate) struct MultipleChoice;

impl RowFormat for MultipleChoice {
    fn columns(&self) -> &'static str {
        "`input`, `choices` and `answer`"
    }

    fn matches(&self, columns: &Columns) -> bool {
        columns.get("choices").is_some()
    }

    fn prompt(&self, columns: &Columns) -> Result<String> {
        instruction::prompt(columns)
    }

    fn answer(&self, columns: &Columns) -> Result<Answer> {
        choices_answer(choice_texts(columns.require("choices")?)?, columns.require("answer")?)
    }

    fn kind(&self, columns: &Columns) -> Result<RowKind> {
        instruction::kind(columns)
    }
}

/// The choices of a list.
pub(crate) fn choice_texts(value: &Value) -> Result<Vec<String>> {
    match value {
        Value::Array(_) => json_value::texts(value),
        other => Err(TaskError::value("a list of texts", json_value::kind(other))),
    }
    .at(|| "`choices`")
}

/// The answer of a row with choices, of which `right` gives one by index or text.
pub(crate) fn choices_answer(texts: Vec<String>, right: &Value) -> Result<Answer> {
    if let Some(empty) = texts.iter().position(String::is_empty) {
        return Err(TaskError::Row(format!("`choices`: choice {empty} is empty (the first choice is 0)")));
    }
    let gold = json_value::choice_index(right, &texts).at(|| "`answer`")?;
    Ok(Answer::Choices { texts, gold })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn the_right_choice_is_given_by_index_or_by_text() {
        for answer in [json!(1), json!("no")] {
            let fields = json!({"input": "?", "choices": ["yes", "no"], "answer": answer});
            let columns = Columns::of(&fields);
            let answer = MultipleChoice.answer(&columns).unwrap();
            assert_eq!(answer, Answer::Choices { texts: vec!["yes".into(), "no".into()], gold: 1 });
            assert_eq!(MultipleChoice.prompt(&columns).unwrap(), "?\n");
        }
    }
}
