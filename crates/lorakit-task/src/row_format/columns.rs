//! What a row format sees of a row: its columns, and the task's instruction.

use serde_json::{Map, Value};

use crate::column_names::{ColumnNames, misspelled, suggestion};
use crate::error::{Result, TaskError};
use crate::source::document::SourceRow;

/// The columns of one row, always with `instruction`, which is empty unless row or task give one.
///
/// A column that is null is as good as absent: files of fixed columns, such as Parquet's, fill up rows with nulls. Only
/// templates see it, and [`Columns::require`].
pub(crate) struct Columns {
    fields: Map<String, Value>,
    /// The same with numbers as they are written, if that differs.
    written: Option<Map<String, Value>>,
    /// Whether the file fills objects up with nulls at any depth.
    null_padded: bool,
    /// The standard columns to which the names of columns give others of the file.
    named: Vec<String>,
    /// Those of them that the file lacks.
    added: Vec<String>,
    /// The columns that cannot be read, for messages.
    unreadable: Option<String>,
}

impl Columns {
    /// The columns of a row, and those that `names` adds. `instruction` is the task's.
    pub fn new(row: SourceRow<'_>, names: &ColumnNames, instruction: Option<&str>) -> Result<Columns> {
        if instruction.is_some() && row.fields.get("instruction").is_some_and(|own| !own.is_null()) {
            return Err(TaskError::Row(
                "the row has its own `instruction`, and the task file gives one too".to_string(),
            ));
        }
        let completed = |fields: &Map<String, Value>| -> Result<Map<String, Value>> {
            let mut columns = fields.clone();
            names.add_to(&mut columns).map_err(|error| match row.unreadable {
                None => error,
                Some(unreadable) => TaskError::Row(format!("{error}; of types that are not read: {unreadable}")),
            })?;
            let own = columns.entry("instruction").or_insert(Value::Null);
            if own.is_null() {
                *own = instruction.unwrap_or_default().into();
            }
            Ok(columns)
        };
        let written = row.written.map(completed).transpose()?;
        let named: Vec<String> = names.as_map().keys().cloned().collect();
        let added = named.iter().filter(|name| !row.fields.contains_key(*name)).cloned().collect();
        let (null_padded, unreadable) = (row.null_padded, row.unreadable.map(str::to_owned));
        Ok(Columns { fields: completed(row.fields)?, written, null_padded, named, added, unreadable })
    }

    /// The columns of a row whose numbers are as serde_json writes them.
    #[cfg(test)]
    pub fn of(fields: &Value) -> Columns {
        let mut fields = fields.as_object().cloned().unwrap_or_default();
        fields.entry("instruction").or_insert_with(|| "".into());
        Columns { fields, written: None, null_padded: false, named: Vec::new(), added: Vec::new(), unreadable: None }
    }

    /// The same columns of a file that fills objects up with nulls.
    #[cfg(test)]
    pub fn of_null_padded(fields: &Value) -> Columns {
        Columns { null_padded: true, ..Columns::of(fields) }
    }

    /// Whether nulls within the columns may be those with which the file fills objects up, and not the row's own.
    pub fn is_null_padded(&self) -> bool {
        self.null_padded
    }

    /// Whether the user says which column of the file stands for a standard one.
    pub fn is_named(&self, column: &str) -> bool {
        self.named.iter().any(|name| name == column)
    }

    /// All columns, for templates.
    pub fn as_map(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The columns that a template can read, for messages.
    pub fn present(&self) -> String {
        self.listed(|_| true)
    }

    /// The columns of which `shown` is true, but an empty instruction.
    fn listed(&self, shown: impl Fn(&str) -> bool) -> String {
        let given = self.fields.iter().filter(|(name, value)| name.as_str() != "instruction" || *value != "");
        let given = given.filter(|(name, _)| shown(name));
        let given = given.map(|(name, value)| match value {
            Value::Null => format!("`{name}` (null)"),
            _ => format!("`{name}`"),
        });
        let given: Vec<String> = given.collect();
        if given.is_empty() { "no keys".into() } else { given.join(", ") }
    }

    /// A column that the row may lack; numbers that serde_json would write otherwise are texts, as they are written.
    pub fn get(&self, column: &str) -> Option<&Value> {
        self.column(column).filter(|value| !value.is_null())
    }

    fn column(&self, column: &str) -> Option<&Value> {
        self.written.as_ref().unwrap_or(&self.fields).get(column)
    }

    /// The value at a dotted path of keys, if it has numbers that serde_json would write otherwise.
    pub fn written_at(&self, path: &str) -> Option<&Value> {
        let mut keys = path.trim().split('.');
        let column = self.written.as_ref()?.get(keys.next()?)?;
        keys.try_fold(column, |value, key| value.get(key))
    }

    /// A column that the row must have; it may be null.
    pub fn require(&self, column: &str) -> Result<&Value> {
        self.column(column).ok_or_else(|| self.missing(column))
    }

    /// The error for a column that the row lacks.
    pub fn missing(&self, column: &str) -> TaskError {
        let suggested = || suggestion(&self.fields).map(|names| format!("Try --columns {names}. "));
        self.missing_with(column, misspelled(&self.added, column).or_else(suggested).unwrap_or_default())
    }

    /// The error for a column that the row lacks, whose place `own` may take.
    pub fn missing_but(&self, column: &str, own: &str) -> TaskError {
        self.missing_with(column, format!("Try --columns {column}={own}. "))
    }

    fn missing_with(&self, column: &str, formats: String) -> TaskError {
        let mut present = self.listed(|name| self.added.iter().all(|added| added != name));
        if let Some(unreadable) = &self.unreadable {
            present.push_str(&format!(" and, of types that are not read, {unreadable}"));
        }
        TaskError::MissingColumn { column: column.to_string(), present, formats }
    }
}
