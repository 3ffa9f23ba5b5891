//! The content of a data file, whatever its format, and where its rows are.

use serde_json::{Map, Value};

use crate::error::{At, Error, Result};
use crate::json_value;

/// The content of a data file.
pub(crate) enum Document {
    /// Rows and nothing else.
    Rows(Vec<Value>),
    /// A tree that contains the rows, or is a single one.
    Tree(Value),
}

impl Document {
    /// The rows, in file order. `at` is a dotted path of keys to a list or an object of rows; without it the rows are the
    /// whole list, or what is under `examples`.
    pub fn rows(&self, at: Option<&str>) -> Result<Vec<&Map<String, Value>>> {
        let values: Vec<&Value> = match (self, at) {
            (Document::Rows(rows), None) => rows.iter().collect(),
            (Document::Rows(_), Some(at)) => {
                return Err(Error::Data(format!(
                    "`rows_at = \"{at}\"` needs one JSON document; this file has nothing but rows"
                )));
            }
            (Document::Tree(row), None) if is_row(row) => vec![row],
            (Document::Tree(tree), at) => children(locate(tree, at)?, at)?,
        };
        if values.is_empty() {
            return Err(Error::Data("no rows; expected at least one".to_string()));
        }
        values.into_iter().enumerate().map(|(i, value)| as_row(i + 1, value)).collect()
    }

    /// The text at a dotted path of keys beside the rows; a list of texts is joined by newlines.
    pub fn text_at(&self, at: &str) -> Result<String> {
        let Document::Tree(tree) = self else {
            return Err(Error::Data("expected one JSON document; this file has nothing but rows".to_string()));
        };
        Ok(json_value::texts(walk(tree, at)?)?.join("\n"))
    }
}

fn as_row(number: usize, value: &Value) -> Result<&Map<String, Value>> {
    value.as_object().ok_or_else(|| {
        Error::Data(format!(
            "row {number}: expected an object such as {{\"input\": ..., \"output\": ...}}, found {}",
            json_value::kind(value)
        ))
    })
}

/// Whether a document is one row, as a file of JSON lines with a single line is: an object without objects in it.
fn is_row(value: &Value) -> bool {
    let Value::Object(fields) = value else { return false };
    !fields.contains_key("examples")
        && fields.values().all(|value| match value {
            Value::Object(_) => false,
            Value::Array(items) => !items.iter().any(Value::is_object),
            _ => true,
        })
}

/// The part of a tree that contains the rows.
fn locate<'v>(tree: &'v Value, at: Option<&str>) -> Result<&'v Value> {
    match (at, tree) {
        (Some(at), _) => walk(tree, at).at(|| "`rows_at`"),
        (None, Value::Object(fields)) => fields.get("examples").ok_or_else(|| {
            Error::Data(format!(
                "expected a list of rows, or an object with `examples`; found an object with {}. If the rows are \
                 elsewhere, describe the file by a task TOML with `rows_at`",
                json_value::keys(fields)
            ))
        }),
        (None, other) => Ok(other),
    }
}

fn children<'v>(rows: &'v Value, at: Option<&str>) -> Result<Vec<&'v Value>> {
    match rows {
        Value::Array(items) => Ok(items.iter().collect()),
        Value::Object(items) => Ok(items.values().collect()),
        other => {
            let place = at.map_or(String::new(), |at| format!(" at `{at}`"));
            Err(Error::Data(format!("expected rows as a list or an object{place}, found {}", json_value::kind(other))))
        }
    }
}

/// Follows a dotted path of keys.
fn walk<'v>(value: &'v Value, path: &str) -> Result<&'v Value> {
    path.split('.').try_fold(value, |value, key| match value {
        Value::Object(fields) => fields.get(key).ok_or_else(|| {
            Error::Data(format!("no key `{key}` (of `{path}`); there are {}", json_value::keys(fields)))
        }),
        other => Err(Error::Data(format!("no key `{key}` (of `{path}`) in {}", json_value::kind(other)))),
    })
}
