//! JSON values of a row, read as text, as accepted answers or as the index of a choice, and written canonically.

use serde_json::{Map, Number, Value};

use crate::error::{Result, TaskError};

/// A text; a number is taken as it is written in JSON.
///
/// Other kinds are refused: a `true` or a `null` in place of an answer is more often a bug in the script that wrote the
/// file than an answer to learn.
pub(crate) fn text(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(TaskError::value("a text or a number", kind(other))),
    }
}

/// One text, or a list of at least one.
pub(crate) fn texts(value: &Value) -> Result<Vec<String>> {
    match value {
        Value::Array(items) if items.is_empty() => Err(TaskError::value("a text", "an empty list")),
        Value::Array(items) => items.iter().map(text).collect(),
        other => Ok(vec![text(other)?]),
    }
}

/// What to do about a boolean as the right choice.
const BOOLEAN_ANSWER: &str = "; in a task TOML, `answer = \"COLUMN | int\"` makes it 0 or 1";

/// The index of the right choice: the whole number itself, the choice whose text it is, or, where no choice has that text,
/// a whole number written as text or as 1.0, as pandas writes a column that lacks some.
pub(crate) fn choice_index(value: &Value, choices: &[String]) -> Result<usize> {
    let is_index = |number: &Number| number.as_u64().is_some();
    let text = match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => (!is_index(number)).then(|| number.to_string()),
        _ => None,
    };
    if let Some(index) = text.and_then(|text| choices.iter().position(|choice| *choice == text)) {
        return Ok(index);
    }
    let index = match value {
        Value::Number(number) => whole_number(number).and_then(|n| usize::try_from(n).ok()),
        Value::String(text) => text.trim().parse().ok(),
        other => {
            // Whether a boolean means choice 1 or a choice `true`, only the task's author knows.
            let hint = if other.is_boolean() { BOOLEAN_ANSWER } else { "" };
            return Err(TaskError::value("the right choice's index or text", format!("{}{hint}", kind(other))));
        }
    };
    match index {
        Some(index) if index < choices.len() => Ok(index),
        _ => Err(TaskError::Row(format!(
            "{value} is neither an index below {} (the first choice is 0) nor one of the choices {}",
            choices.len(),
            Value::from(choices)
        ))),
    }
}

/// A number without a fraction, as 1 or as 1.0.
fn whole_number(number: &Number) -> Option<u64> {
    let float = || number.as_f64().filter(|float| float.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(float));
    number.as_u64().or_else(|| float().map(|float| float as u64))
}

/// A JSON value's kind, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The value without the null entries of its objects at any depth, with which files of fixed columns fill them up.
pub(crate) fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let given = fields.iter().filter(|(_, value)| !value.is_null());
            Value::Object(given.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        scalar => scalar.clone(),
    }
}

/// The keys of an object, for messages.
pub(crate) fn keys(fields: &Map<String, Value>) -> String {
    let keys: Vec<_> = fields.keys().map(|key| format!("`{key}`")).collect();
    if keys.is_empty() { "no keys".into() } else { keys.join(", ") }
}

/// JSON with sorted keys and no white space: one text for one value, however a file spells it.
pub(crate) fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

/// [`canonical`] of an object.
pub(crate) fn canonical_object(fields: &Map<String, Value>) -> String {
    let mut text = String::new();
    write_object(fields, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Object(fields) => write_object(fields, text),
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                write(item, text);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

fn write_object(fields: &Map<String, Value>, text: &mut String) {
    let mut entries: Vec<_> = fields.iter().collect();
    entries.sort_by_key(|(key, _)| *key);
    text.push('{');
    for (i, (key, value)) in entries.into_iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(&Value::String(key.clone()).to_string());
        text.push(':');
        write(value, text);
    }
    text.push('}');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn numbers_are_texts_and_other_kinds_are_not() {
        assert_eq!(text(&json!(5)).unwrap(), "5");
        assert_eq!(texts(&json!(["a", 2.5])).unwrap(), ["a", "2.5"]);
        assert!(texts(&json!([])).is_err());
        let error = text(&json!(null)).unwrap_err().to_string();
        assert_eq!(error, "expected a text or a number, found null");
    }

    #[test]
    fn the_right_choice_is_an_index_or_a_text() {
        let choices = ["1".to_string(), "0".to_string(), "no".to_string()];
        assert_eq!(choice_index(&json!(1), &choices).unwrap(), 1);
        assert_eq!(choice_index(&json!("1"), &choices).unwrap(), 0);
        assert_eq!(choice_index(&json!("2"), &choices).unwrap(), 2);
        assert_eq!(choice_index(&json!("no"), &choices).unwrap(), 2);
        assert_eq!(choice_index(&json!(1.0), &choices).unwrap(), 1);
        assert_eq!(choice_index(&json!(1.0), &["a".to_string(), "b".to_string(), "1.0".to_string()]).unwrap(), 2);
        for wrong in [json!(3), json!(-1), json!("yes"), json!(true), json!(0.5), json!(3.0), json!(-1.0)] {
            assert!(choice_index(&wrong, &choices).is_err(), "{wrong}");
        }
        let error = choice_index(&json!(true), &choices).unwrap_err().to_string();
        assert!(
            error.ends_with("found a boolean; in a task TOML, `answer = \"COLUMN | int\"` makes it 0 or 1"),
            "{error}"
        );
    }

    #[test]
    fn the_order_of_keys_does_not_matter() {
        let text = canonical(&json!({"b": [1, 2.5, null], "a": {"d": "\n", "c": true}}));
        assert_eq!(text, r#"{"a":{"c":true,"d":"\n"},"b":[1,2.5,null]}"#);
    }
}
