//! One JSON document: a list of rows, an object that contains them, or a single row.

use std::path::Path;

use serde::de::IgnoredAny;

use crate::error::{Result, TaskError};
use crate::source::document::Document;
use crate::source::file_format::FileFormat;
use crate::source::source_value::{SourceValue, without_non_finite};

/// A file of one JSON document.
pub(crate) struct Json;

impl FileFormat for Json {
    fn extension(&self) -> &'static str {
        ".json"
    }

    /// None if a line break follows a first value of one line: these are JSON lines.
    fn parse(&self, _: &Path, content: &[u8]) -> Result<Option<Document>> {
        parse(text(content)?)
    }
}

/// The text of a file, without its byte order mark.
pub(crate) fn text(content: &[u8]) -> Result<&str> {
    let text = std::str::from_utf8(content)?;
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

fn parse(text: &str) -> Result<Option<Document>> {
    let not_json = |error: serde_json::Error| TaskError::Data(format!("not JSON: {error}"));
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    match values.next() {
        None => return Err(TaskError::Data("the file is empty; expected at least one row".to_string())),
        Some(Err(error)) => return without_non_finite(text).map_or(Err(not_json(error)), |text| parse(&text)),
        Some(Ok(_)) => {}
    };
    let (first, rest) = text.split_at(values.byte_offset());
    if rest.trim().is_empty() {
        return Ok(Some(Document::Tree(SourceValue::parse(first).map_err(not_json)?)));
    }
    let line = first.lines().count();
    if first.trim().lines().count() > 1 || !rest.trim_start_matches([' ', '\t', '\r']).starts_with('\n') {
        return Err(TaskError::Data(format!("not JSON: there is text after the document, on line {line} or later")));
    }
    Ok(None)
}
