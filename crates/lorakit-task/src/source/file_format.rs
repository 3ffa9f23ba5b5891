//! What a file format is.

use std::path::Path;

use crate::error::Result;
use crate::source::document::Document;

/// One format of data files. A file's content decides its format, and its extension makes a folder listing find it; the
/// content of CSV and TSV says nothing, so that their extension decides.
pub(crate) trait FileFormat: Sync {
    /// The extension of its files in folders, with its dot; `.gz` may follow.
    fn extension(&self) -> &'static str;

    /// The rows of a file, its content already decompressed; None if the file is of another format.
    fn parse(&self, path: &Path, content: &[u8]) -> Result<Option<Document>>;
}
