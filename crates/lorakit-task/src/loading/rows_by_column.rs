//! Splits data files into one task for each value of a column, as the `task_name` of Flan.

use std::collections::BTreeMap;
use std::path::Path;

use lorakit_format::hash::sha256;
use serde_json::{Map, Value};

use crate::error::{At, Result, TaskError};
use crate::json_value::{canonical_object, keys};
use crate::source::data_file::DataFile;

/// Rows as JSON lines, by the value of a column. File after file is added; of each value only so many rows are held.
///
/// Which rows of a value are kept does not depend on the order of the files: those whose hash is smallest, a random sample
/// without equal rows.
#[derive(Debug)]
pub struct RowsByColumn {
    column: String,
    /// The largest number of rows of a value.
    limit: usize,
    /// Columns and the values of which a row must have one; others are left out.
    only: BTreeMap<String, Vec<String>>,
    /// For each value, the rows by their hashes.
    kept: BTreeMap<String, BTreeMap<String, KeptRow>>,
}

/// A row that is kept.
#[derive(Debug)]
struct KeptRow {
    line: String,
    /// How many rows equal to it were left out.
    duplicates: usize,
}

/// The rows of a value, of which no two are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DistinctRows {
    /// As JSON lines, in the order of their hashes, which is random.
    pub lines: Vec<String>,
    /// How many rows equal to one of them were left out.
    pub duplicates: usize,
}

impl RowsByColumn {
    /// Nothing yet. A row that `only` names a column of is kept where it has one of the values there.
    pub fn new(column: &str, limit: usize, only: BTreeMap<String, Vec<String>>) -> Self {
        Self { column: column.to_owned(), limit, only, kept: BTreeMap::new() }
    }

    /// Adds the rows of a data file.
    ///
    /// # Errors
    /// If the file cannot be read, or a row lacks a column that decides.
    pub fn add(&mut self, file: &Path) -> Result<()> {
        let read = DataFile::read(file)?;
        for (number, row) in read.document.rows(None)?.into_iter().enumerate() {
            self.add_row(row.written.unwrap_or(row.fields)).at(|| format!("{}: row {}", file.display(), number + 1))?;
        }
        Ok(())
    }

    fn add_row(&mut self, fields: &Map<String, Value>) -> Result<()> {
        for (column, values) in &self.only {
            if !values.contains(&text(fields, column)?) {
                return Ok(());
            }
        }
        let line = canonical_object(fields);
        let hash = sha256(line.as_bytes());
        let kept = self.kept.entry(text(fields, &self.column)?).or_default();
        kept.entry(hash).and_modify(|kept| kept.duplicates += 1).or_insert(KeptRow { line, duplicates: 0 });
        if kept.len() > self.limit {
            kept.pop_last();
        }
        Ok(())
    }

    /// The rows of each value.
    pub fn into_rows(self) -> BTreeMap<String, DistinctRows> {
        let rows = |kept: BTreeMap<String, KeptRow>| DistinctRows {
            duplicates: kept.values().map(|row| row.duplicates).sum(),
            lines: kept.into_values().map(|row| row.line).collect(),
        };
        self.kept.into_iter().map(|(value, kept)| (value, rows(kept))).collect()
    }
}

/// The text in a column.
fn text(fields: &Map<String, Value>, column: &str) -> Result<String> {
    match fields.get(column) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Ok(other.to_string()),
        None => Err(TaskError::Row(format!("no column `{column}`; there are {}", keys(fields)))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::path::PathBuf;

    /// Rows of the form of `chiayewken/flan-v2`.
    fn shard(folder: &Path, name: &str, rows: std::ops::Range<usize>) -> PathBuf {
        let line = |row: usize| {
            let (task, source) = [("a:1.0.0", "P3"), ("b", "Flan2021"), ("n", "NIv2")][row % 3];
            format!(
                r#"{{"source": "q{row}", "target": "t", "task_name": "{task}", "task_source": "{source}", "template_type": "zs_opt"}}"#
            )
        };
        let path = folder.join(name);
        std::fs::write(&path, rows.map(line).collect::<Vec<_>>().join("\n")).unwrap();
        path
    }

    fn split(files: &[PathBuf], limit: usize) -> BTreeMap<String, DistinctRows> {
        let only = BTreeMap::from([("task_source".to_owned(), vec!["P3".to_owned(), "Flan2021".to_owned()])]);
        let mut rows = RowsByColumn::new("task_name", limit, only);
        files.iter().for_each(|file| rows.add(file).unwrap());
        rows.into_rows()
    }

    #[test]
    fn rows_are_sampled_whatever_the_order_of_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (shard(folder.path(), "0.jsonl", 0..150), shard(folder.path(), "1.jsonl", 120..300));
        let found = split(&[one.clone(), two.clone()], 20);
        assert_eq!(found, split(&[two.clone(), one.clone()], 20));
        assert_eq!(found.keys().collect::<Vec<_>>(), ["a:1.0.0", "b"], "NIv2 is left out");
        assert!(found.values().all(|rows| rows.lines.len() == 20));
        let sampled: Vec<usize> =
            found["b"].lines.iter().map(|row| row.split('q').nth(1).unwrap()).map(number).collect();
        assert!(sampled.iter().any(|row| *row < 100) && sampled.iter().any(|row| *row > 200), "{sampled:?}");
        // Without a limit each row is there once, although both files have some.
        let all = &split(&[one, two], 1000)["b"];
        assert_eq!((all.lines.len(), all.duplicates), (100, 10));
    }

    fn number(text: &str) -> usize {
        text.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    }

    #[test]
    fn a_row_without_the_column_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("x.jsonl");
        std::fs::write(&file, "{\"source\": \"q\", \"target\": \"t\"}\n{\"source\": \"r\", \"target\": \"t\"}")
            .unwrap();
        let error = RowsByColumn::new("task_name", 9, BTreeMap::new()).add(&file).unwrap_err();
        let message = format!("{:#}", anyhow::Error::from(error));
        assert!(message.contains("row 1") && message.contains("task_name") && message.contains("source"), "{message}");
    }
}
