//! A JSON value of a row, read as text, as accepted answers, or as the index of a choice.

use anyhow::{Result, bail};
use serde_json::Value;

/// A text; numbers are taken as they are written in JSON.
///
/// Other kinds are refused: a `true` or a `null` in the place of an answer is more often a slip of
/// the script that wrote the file than an answer to be learnt.
pub(crate) fn text(value: &Value) -> Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => bail!("expected a text or a number, found {}", kind(other)),
    }
}

/// One text, or a list of texts with at least one.
pub(crate) fn texts(value: &Value) -> Result<Vec<String>> {
    match value {
        Value::Array(items) if items.is_empty() => bail!("expected a text, found an empty list"),
        Value::Array(items) => items.iter().map(text).collect(),
        other => Ok(vec![text(other)?]),
    }
}

/// The index of the right choice: the number itself, the choice whose text it is, or, where no
/// choice has that text, a whole number written as text.
pub(crate) fn gold(value: &Value, choices: &[String]) -> Result<usize> {
    if let Value::String(text) = value
        && let Some(index) = choices.iter().position(|choice| choice == text)
    {
        return Ok(index);
    }
    let index = match value {
        Value::Number(number) => number.as_u64().and_then(|n| usize::try_from(n).ok()),
        Value::String(text) => text.trim().parse().ok(),
        other => bail!("expected the right choice's index or text, found {}", kind(other)),
    };
    match index {
        Some(index) if index < choices.len() => Ok(index),
        _ => bail!(
            "{value} is neither an index below {} (the first choice is 0) nor one of the choices {}",
            choices.len(),
            Value::from(choices)
        ),
    }
}

/// A JSON value's kind, for error messages.
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
        assert_eq!(gold(&json!(1), &choices).unwrap(), 1);
        assert_eq!(gold(&json!("1"), &choices).unwrap(), 0);
        assert_eq!(gold(&json!("2"), &choices).unwrap(), 2);
        assert_eq!(gold(&json!("no"), &choices).unwrap(), 2);
        for wrong in [json!(3), json!(-1), json!("yes"), json!(true)] {
            assert!(gold(&wrong, &choices).is_err(), "{wrong}");
        }
    }
}
