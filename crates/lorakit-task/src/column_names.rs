//! Names of columns that stand for the standard ones.

use std::collections::BTreeMap;
use std::str::FromStr;

use lorakit_format::similar_names;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Result, TaskError};
use crate::json_value;

/// Standard columns such as `input` and `output`, each with the column of a data file that takes its place: a name, or a
/// dotted path of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(transparent)]
pub struct ColumnNames(BTreeMap<String, String>);

impl ColumnNames {
    /// Whether every column has its own name.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The standard columns, each with its name in the file.
    pub fn as_map(&self) -> &BTreeMap<String, String> {
        &self.0
    }

    /// The names, and `others` for the columns that they lack.
    pub(crate) fn or(mut self, others: &ColumnNames) -> ColumnNames {
        for (column, own) in &others.0 {
            self.0.entry(column.clone()).or_insert_with(|| own.clone());
        }
        self
    }

    /// Adds the standard columns to a row.
    pub(crate) fn add_to(&self, fields: &mut Map<String, Value>) -> Result<()> {
        let mut added = Vec::new();
        for (column, own) in &self.0 {
            let value = fields.get(own).or_else(|| at_path(fields, own)).ok_or_else(|| {
                TaskError::Row(format!(
                    "no column `{own}`, which is to be `{column}`; the row has {}{}. Names of columns apply to every data \
                     file of a command: where files differ, give each a command of its own, or a task TOML with its own \
                     [columns]",
                    json_value::keys(fields),
                    remark(column, own, fields)
                ))
            })?;
            added.push((column.clone(), value.clone()));
        }
        fields.extend(added);
        Ok(())
    }
}

/// The columns that are mostly named. Others, such as `answer`, are standard names too, but common in other data sets.
const STANDARD: [&str; 4] = ["instruction", "input", "output", "choices"];

/// What else is to be said of a row that has `column` but lacks `own`, which is to take its place.
fn remark(column: &str, own: &str, fields: &Map<String, Value>) -> String {
    if !fields.contains_key(column) {
        return String::new();
    }
    match STANDARD.contains(&own) && !STANDARD.contains(&column) {
        true => format!("; the standard name comes first: {own}={column}"),
        false => format!("; it has `{column}` already"),
    }
}

/// The name among `given` that is meant to be the standard column `missing`, as a sentence.
pub(crate) fn misspelled(given: &[String], missing: &str) -> Option<String> {
    let is_close = |name: &&String| !STANDARD.contains(&name.as_str()) && !similar_names(name, [missing]).is_empty();
    let name = given.iter().find(is_close)?;
    Some(format!("`{name}`, given in --columns or [columns], is no standard name; did you mean `{missing}`? "))
}

fn at_path<'f>(fields: &'f Map<String, Value>, path: &str) -> Option<&'f Value> {
    let (first, rest) = path.split_once('.')?;
    rest.split('.').try_fold(fields.get(first)?, |value, key| value.get(key))
}

impl From<BTreeMap<String, String>> for ColumnNames {
    fn from(names: BTreeMap<String, String>) -> Self {
        ColumnNames(names)
    }
}

impl FromStr for ColumnNames {
    type Err = TaskError;

    /// Reads `input=question,output=answer`.
    fn from_str(text: &str) -> Result<Self> {
        let mut names = BTreeMap::new();
        for pair in text.split(',') {
            let Some((column, own)) =
                pair.split_once('=').filter(|(a, b)| !a.trim().is_empty() && !b.trim().is_empty())
            else {
                return Err(TaskError::Spec(format!(
                    "`{pair}` is not STANDARD=COLUMN, such as input=question: the standard column, then the file's"
                )));
            };
            if names.insert(column.trim().to_string(), own.trim().to_string()).is_some() {
                return Err(TaskError::Spec(format!("the column `{}` is given twice", column.trim())));
            }
        }
        Ok(ColumnNames(names))
    }
}

/// Names that other data sets have for what the model reads, the likeliest first.
const INPUTS: [&str; 12] = [
    "input", "question", "query", "problem", "prompt", "context", "article", "document", "source", "sentence", "user",
    "text",
];

/// Names that other data sets have for what the model writes, the likeliest first.
const OUTPUTS: [&str; 13] = [
    "output",
    "answer",
    "response",
    "completion",
    "target",
    "solution",
    "summary",
    "label",
    "highlights",
    "reply",
    "translation",
    "assistant",
    "expected",
];

/// Names that rows of two answers have for what is asked, the likeliest first.
const QUESTIONS: [&str; 5] = ["question", "query", "problem", "user", "context"];

/// A column that is what a row's answers answer, by its name, and its text.
pub(crate) fn question(fields: &Map<String, Value>) -> Option<(&str, &str)> {
    let named = |name: &&str| fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    let mut texts = QUESTIONS.iter().filter_map(named).filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)));
    texts.find(|(_, text)| !text.is_empty())
}

/// The `--columns` that would name the columns of a row: a guess for its error message.
pub(crate) fn suggestion(fields: &Map<String, Value>) -> Option<String> {
    let given = || fields.iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.as_str());
    let named = |name: &str| given().find(|key| key.eq_ignore_ascii_case(name));
    let found = |names: &[&str]| names.iter().find_map(|name| named(name));
    let (input, output) = (found(&INPUTS), found(&OUTPUTS)?);
    let mut pairs = Vec::new();
    match input {
        Some("input") => {}
        Some(own) => pairs.push(format!("input={own}")),
        None if fields.get("instruction").is_some_and(|text| text != "") => {}
        None => return None,
    }
    if output != "output" {
        pairs.push(format!("output={output}"));
    }
    (!pairs.is_empty()).then(|| pairs.join(","))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn other_columns_take_the_place_of_the_standard_ones() {
        let names: ColumnNames = "input=question, output=answers.text".parse().unwrap();
        let mut row = fields(json!({"question": "Q?", "answers": {"text": ["a"]}}));
        names.add_to(&mut row).unwrap();
        assert_eq!((&row["input"], &row["output"]), (&json!("Q?"), &json!(["a"])));
        // Two columns may change places.
        let swapped: ColumnNames = "input=output,output=input".parse().unwrap();
        let mut row = fields(json!({"input": "a", "output": "b"}));
        swapped.add_to(&mut row).unwrap();
        assert_eq!(row, fields(json!({"input": "b", "output": "a"})));
    }

    #[test]
    fn errors_list_the_columns_that_exist() {
        let names: ColumnNames = "input=qestion".parse().unwrap();
        let error = names.add_to(&mut fields(json!({"question": 1, "answer": 2}))).unwrap_err().to_string();
        assert!(
            error.starts_with("no column `qestion`, which is to be `input`; the row has `question`, `answer`."),
            "{error}"
        );
        let reversed: ColumnNames = "question=input".parse().unwrap();
        let error = reversed.add_to(&mut fields(json!({"question": 1, "answer": 2}))).unwrap_err().to_string();
        assert!(error.contains("; the standard name comes first: input=question."), "{error}");
        // A file that needs no other names, beside one that does.
        let error = names.add_to(&mut fields(json!({"input": 1, "output": 2}))).unwrap_err().to_string();
        assert!(error.contains("the row has `input`, `output`; it has `input` already. Names of columns"), "{error}");
        assert!(error.contains("give each a command of its own") && !error.contains("comes first"), "{error}");
        for wrong in ["", "input", "input=", "=a", "input=a,input=b"] {
            assert!(wrong.parse::<ColumnNames>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn well_known_names_are_suggested() {
        let of = |row| suggestion(&fields(row));
        assert_eq!(of(json!({"question": 1, "answer": 2})).unwrap(), "input=question,output=answer");
        assert_eq!(of(json!({"instruction": "i", "response": 2})).unwrap(), "output=response");
        assert_eq!(of(json!({"input": 1, "target": 2})).unwrap(), "output=target");
        assert_eq!(of(json!({"a": 1, "b": 2})), None);
    }
}
