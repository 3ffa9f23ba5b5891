//! What a row format sees of a row: its columns, and the task's instruction.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json_value;

/// The columns of one row, always with `instruction`, which is empty unless row or task give one.
pub(crate) struct Columns(Map<String, Value>);

impl Columns {
    /// The columns of a row. `instruction` is the task's.
    pub fn new(fields: &Map<String, Value>, instruction: Option<&str>) -> Result<Columns> {
        let mut columns = fields.clone();
        match instruction {
            Some(_) if fields.contains_key("instruction") => {
                return Err(Error::Row(
                    "the row has its own `instruction`, and the task file gives one too".to_string(),
                ));
            }
            Some(text) => {
                columns.insert("instruction".into(), text.into());
            }
            None => {
                columns.entry("instruction").or_insert_with(|| "".into());
            }
        }
        Ok(Columns(columns))
    }

    /// All columns, for templates.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }

    /// A column that the row may lack.
    pub fn get(&self, column: &str) -> Option<&Value> {
        self.0.get(column)
    }

    /// A column that the row must have.
    pub fn require(&self, column: &str) -> Result<&Value> {
        self.get(column).ok_or_else(|| self.missing(column))
    }

    /// The error for a column that the row lacks.
    pub fn missing(&self, column: &str) -> Error {
        let mut present = self.0.clone();
        if present.get("instruction").is_some_and(|text| text == "") {
            present.shift_remove("instruction");
        }
        Error::MissingColumn { column: column.to_string(), present: json_value::keys(&present), formats: String::new() }
    }
}
