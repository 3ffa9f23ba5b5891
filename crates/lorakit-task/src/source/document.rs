//! The content of a data file, whatever its format, and where its rows are.

use serde_json::{Map, Value};

use crate::error::{At, Result, TaskError};
use crate::json_value;
use crate::source::source_value::SourceValue;

/// The content of a data file.
pub(crate) enum Document {
    /// Rows and nothing else.
    Rows(Vec<SourceValue>),
    /// A tree that contains the rows, or is a single one.
    Tree(SourceValue),
}

/// One row of a data file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SourceRow<'d> {
    /// The columns.
    pub fields: &'d Map<String, Value>,
    /// The columns with numbers as they are written, if that differs: see [`SourceValue`].
    pub written: Option<&'d Map<String, Value>>,
    /// Whether the file fills objects up with nulls: see [`SourceValue`].
    pub null_padded: bool,
    /// The columns that cannot be read: see [`SourceValue`].
    pub unreadable: Option<&'d str>,
}

impl Document {
    /// The rows, in file order. `at` is a dotted path of keys to a list or an object of rows; without it the rows are the
    /// whole list, what is under `examples`, or the one object that the file is.
    pub fn rows(&self, at: Option<&str>) -> Result<Vec<SourceRow<'_>>> {
        let values: Vec<(&Value, Option<&Value>)> = match (self, at) {
            (Document::Rows(rows), None) => rows.iter().map(|row| (&row.value, row.written.as_ref())).collect(),
            (Document::Rows(_), Some(at)) => {
                return Err(TaskError::Data(format!(
                    "`rows_at = \"{at}\"` needs one JSON document; this file has nothing but rows"
                )));
            }
            (Document::Tree(tree), at) => {
                let values = row_values(&tree.value, at)?;
                // The same tree but for its numbers.
                let written = tree.written.as_ref().map(|written| row_values(written, at)).transpose()?;
                let written = written.map_or(vec![None; values.len()], |all| all.into_iter().map(Some).collect());
                values.into_iter().zip(written).collect()
            }
        };
        if values.is_empty() {
            return Err(TaskError::Data("no rows; expected at least one".to_string()));
        }
        let null_padded = matches!(self, Document::Rows(rows) if rows.iter().any(|row| row.null_padded));
        let unreadable = match self {
            Document::Rows(rows) => rows.iter().find_map(|row| row.unreadable.as_deref()),
            Document::Tree(_) => None,
        };
        let mut rows = Vec::with_capacity(values.len());
        for (i, (value, written)) in values.into_iter().enumerate() {
            let written = written.and_then(Value::as_object);
            rows.push(SourceRow { fields: as_row(i + 1, value)?, written, null_padded, unreadable });
        }
        Ok(rows)
    }

    /// Whether the whole document is read as one row, and has a list or an object of objects that may be the rows instead.
    pub fn may_contain_rows(&self, at: Option<&str>) -> bool {
        match (self, at) {
            (Document::Tree(tree), None) if is_row(&tree.value) => {
                tree.value.as_object().is_some_and(|fields| fields.values().any(has_objects))
            }
            _ => false,
        }
    }

    /// The text at a dotted path of keys beside the rows; a list of texts is joined by newlines.
    pub fn text_at(&self, at: &str) -> Result<String> {
        let Document::Tree(tree) = self else {
            return Err(TaskError::Data("expected one JSON document; this file has nothing but rows".to_string()));
        };
        Ok(json_value::texts(walk(tree.written.as_ref().unwrap_or(&tree.value), at)?)?.join("\n"))
    }
}

fn as_row(number: usize, value: &Value) -> Result<&Map<String, Value>> {
    value.as_object().ok_or_else(|| {
        TaskError::Data(format!(
            "row {number}: expected an object such as {{\"input\": ..., \"output\": ...}}, found {}",
            json_value::kind(value)
        ))
    })
}

/// Whether a document is one row, as a file of JSON lines with a single line is.
fn is_row(value: &Value) -> bool {
    value.as_object().is_some_and(|fields| !fields.contains_key("examples"))
}

/// Whether a value is a list or an object of objects.
fn has_objects(value: &Value) -> bool {
    children(value, None).is_ok_and(|items| !items.is_empty() && items.into_iter().all(Value::is_object))
}

/// The rows of a tree.
fn row_values<'v>(tree: &'v Value, at: Option<&str>) -> Result<Vec<&'v Value>> {
    match (at, tree) {
        (Some(path), _) => children(walk(tree, path).at(|| "`rows_at`")?, at),
        (None, tree) if is_row(tree) => Ok(vec![tree]),
        (None, Value::Object(fields)) => fields.get("examples").map_or(Ok(Vec::new()), |rows| children(rows, None)),
        (None, rows) => children(rows, None),
    }
}

fn children<'v>(rows: &'v Value, at: Option<&str>) -> Result<Vec<&'v Value>> {
    match rows {
        Value::Array(items) => Ok(items.iter().collect()),
        Value::Object(items) => Ok(items.values().collect()),
        other => {
            let place = at.map_or(String::new(), |at| format!(" at `{at}`"));
            Err(TaskError::Data(format!(
                "expected rows as a list or an object{place}, found {}",
                json_value::kind(other)
            )))
        }
    }
}

/// Follows a dotted path of keys.
fn walk<'v>(value: &'v Value, path: &str) -> Result<&'v Value> {
    path.split('.').try_fold(value, |value, key| match value {
        Value::Object(fields) => fields.get(key).ok_or_else(|| {
            TaskError::Data(format!("no key `{key}` (of `{path}`); there are {}", json_value::keys(fields)))
        }),
        other => Err(TaskError::Data(format!("no key `{key}` (of `{path}`) in {}", json_value::kind(other)))),
    })
}
