//! The file formats.

use std::path::Path;

use crate::error::{At, Result, TaskError};
use crate::source::arrow_stream::ArrowStream;
use crate::source::delimited::{CSV, TSV};
use crate::source::document::Document;
use crate::source::file_extension::strip_extension;
use crate::source::file_format::FileFormat;
use crate::source::json::Json;
use crate::source::json_lines::JsonLines;
use crate::source::parquet::Parquet;

/// Every file format; a file is of the first that can parse it.
static FILE_FORMATS: &[&dyn FileFormat] = &[&Parquet, &ArrowStream, &CSV, &TSV, &Json, &JsonLines];

/// Parses a decompressed file by the format of its content.
pub(crate) fn parse(path: &Path, content: &[u8]) -> Result<Document> {
    for format in FILE_FORMATS {
        if let Some(document) = format.parse(path, content).at(|| path.display().to_string())? {
            return Ok(document);
        }
    }
    Err(TaskError::Data(format!("{}: unknown file format; expected {}", path.display(), extensions().join(", "))))
}

/// The extensions of data files, compressed and plain.
pub(crate) fn extensions() -> Vec<String> {
    let both = |format: &&dyn FileFormat| [format!("{}.gz", format.extension()), format.extension().to_string()];
    FILE_FORMATS.iter().flat_map(both).collect()
}

/// The name of a data file without its extension; None if the extension is of no format.
pub(crate) fn data_stem(name: &str) -> Option<&str> {
    extensions().iter().find_map(|extension| strip_extension(name, extension))
}
