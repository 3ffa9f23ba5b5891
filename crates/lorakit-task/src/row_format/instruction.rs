//! Rows of `instruction`, `input` and `output`, as in Alpaca's data.

use crate::error::{At, Result};
use crate::json_value;
use crate::row::{Answer, RowKind};
use crate::row_format::columns::Columns;
use crate::row_format::format::RowFormat;

/// `input` and `output`, `instruction` and `output`, or all three. `output` may be a list of accepted answers.
pub(crate) struct Instruction;

impl RowFormat for Instruction {
    fn columns(&self) -> &'static str {
        "`output` with `input`, `instruction` or both"
    }

    fn matches(&self, columns: &Columns) -> bool {
        columns.as_map().contains_key("output")
    }

    fn prompt(&self, columns: &Columns) -> Result<String> {
        prompt(columns)
    }

    fn answer(&self, columns: &Columns) -> Result<Answer> {
        Ok(Answer::Text(json_value::texts(columns.require("output")?).at(|| "`output`")?))
    }

    fn kind(&self, columns: &Columns) -> Result<RowKind> {
        kind(columns)
    }
}

/// Instruction and input, each followed by one newline; an empty one is left out.
pub(crate) fn prompt(columns: &Columns) -> Result<String> {
    let fields = instruction_and_input(columns)?;
    let lines = fields.iter().filter(|text| !text.is_empty());
    Ok(lines.map(|text| format!("{text}\n")).collect())
}

/// The instruction for the system's turn, the input for the user's.
pub(crate) fn kind(columns: &Columns) -> Result<RowKind> {
    let [instruction, input] = instruction_and_input(columns)?;
    Ok(RowKind::Plain { instruction, input })
}

/// Whether there is an instruction or an input that is not empty.
pub(crate) fn is_given(columns: &Columns) -> bool {
    ["instruction", "input"].iter().any(|name| columns.get(name).is_some_and(|value| value != ""))
}

fn instruction_and_input(columns: &Columns) -> Result<[String; 2]> {
    let instruction = json_value::text(columns.require("instruction")?).at(|| "`instruction`")?;
    let input = match columns.get("input") {
        Some(input) => json_value::text(input).at(|| "`input`")?,
        // Rows of instruction and output alone are complete.
        None if !instruction.is_empty() => String::new(),
        None => return Err(columns.missing("input")),
    };
    Ok([instruction, input])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn row(fields: Value) -> (String, Vec<String>) {
        let columns = Columns::of(&fields);
        let Answer::Text(accepted) = Instruction.answer(&columns).unwrap() else { unreachable!() };
        (Instruction.prompt(&columns).unwrap(), accepted)
    }

    #[test]
    fn each_field_is_on_its_own_line_and_empty_fields_are_left_out() {
        assert_eq!(row(json!({"input": "hot", "output": "cold"})), ("hot\n".into(), vec!["cold".into()]));
        let both = row(json!({"instruction": "Invert.", "input": "hot", "output": "cold"}));
        assert_eq!(both.0, "Invert.\nhot\n");
        // The rows of llm_adapters have an empty input, and `answer` beside `output`.
        let empty = json!({"instruction": "Q?", "input": "", "output": "true", "answer": "t"});
        assert_eq!(row(empty).0, "Q?\n");
        assert_eq!(row(json!({"instruction": "Q?", "output": "true"})).0, "Q?\n");
    }

    #[test]
    fn output_may_be_a_list_of_accepted_answers() {
        assert_eq!(row(json!({"input": "2", "output": ["two", 2]})).1, ["two", "2"]);
    }
}
