//! JSON lines: one row on each line. A file of a single line is read as JSON, with the same row.

use std::path::Path;

use serde_json::Value;

use crate::error::{At, Result, TaskError};
use crate::source::document::Document;
use crate::source::file_content::FileContent;
use crate::source::file_format::FileFormat;
use crate::source::json::text;
use crate::source::source_value::{SourceValue, without_non_finite};

/// A file of JSON values, one on each line; empty lines are skipped.
pub(crate) struct JsonLines;

impl FileFormat for JsonLines {
    fn extension(&self) -> &'static str {
        ".jsonl"
    }

    fn parse(&self, _: &Path, content: &[u8]) -> Result<Option<Document>> {
        let rows = lines(text(content)?).map(|(number, line)| parse_line(number, line));
        Ok(Some(Document::Rows(rows.collect::<Result<_>>()?)))
    }
}

/// A line of a file of JSON lines.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonLine {
    /// The line's number, from 1.
    pub number: usize,
    /// Its value, with integers beyond 64 bits as texts.
    pub value: Value,
    /// The line as it stands but for NaN and infinities, which are null, if it has numbers that serde_json would write
    /// otherwise.
    pub written: Option<String>,
}

/// The lines of a file of JSON lines that are not empty. The file may be gzipped, and begin with a byte order mark.
///
/// # Errors
/// If the file cannot be read, or a line is not JSON.
pub fn read_json_lines(path: &Path) -> Result<Vec<JsonLine>> {
    let content = FileContent::read(path)?;
    let line = |(number, text): (usize, &str)| {
        let SourceValue { value, written, .. } = parse_line(number, text)?;
        let written = written.map(|_| without_non_finite(text).unwrap_or_else(|| text.to_owned()));
        Ok(JsonLine { number, value, written })
    };
    text(&content.bytes).and_then(|text| lines(text).map(line).collect()).at(|| path.display().to_string())
}

/// The lines that are not empty, each with its number from 1.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(|(i, line)| (i + 1, line))
}

fn parse_line(number: usize, line: &str) -> Result<SourceValue> {
    SourceValue::parse(line).map_err(|error| {
        // The parser counts lines within the line it was given.
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default();
        TaskError::Data(format!("line {number} column {}: not JSON: {what}", error.column()))
    })
}
