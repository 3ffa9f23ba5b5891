//! JSON lines: one row on each line. A file of a single line is read as JSON, with the same row.

use std::path::Path;

use crate::error::{Result, TaskError};
use crate::source::document::Document;
use crate::source::file_format::FileFormat;
use crate::source::json::text;
use crate::source::source_value::SourceValue;

/// A file of JSON values, one on each line; empty lines are skipped.
pub(crate) struct JsonLines;

impl FileFormat for JsonLines {
    fn ending(&self) -> &'static str {
        ".jsonl"
    }

    fn parse(&self, _: &Path, content: &[u8]) -> Result<Option<Document>> {
        Ok(Some(Document::Rows(parse(text(content)?)?)))
    }
}

fn parse(text: &str) -> Result<Vec<SourceValue>> {
    let mut rows = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let row = SourceValue::parse(line).map_err(|error| {
            // The parser counts lines within the line it was given.
            let what = error.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            TaskError::Data(format!("line {} column {}: not JSON: {what}", i + 1, error.column()))
        })?;
        rows.push(row);
    }
    Ok(rows)
}
