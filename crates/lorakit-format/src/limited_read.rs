//! Text files that are read whole, and so must have an end.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// The longest file of settings or records that is read, in bytes. The record of an expert keeps its losses, which a
/// long training makes millions of.
const LENGTH_LIMIT: u64 = 1 << 28;

/// The text of the file at `path`, without the mark of its byte order.
///
/// # Errors
/// If it cannot be read, is longer than 256 MiB, as a device may be, or is no UTF-8. The error names the file.
pub fn read_text(path: &Path) -> Result<String> {
    let read = || -> Result<String> {
        let mut text = String::new();
        File::open(path)?.take(LENGTH_LIMIT + 1).read_to_string(&mut text)?;
        ensure!(text.len() as u64 <= LENGTH_LIMIT, "longer than {LENGTH_LIMIT} bytes; expected settings or a record");
        Ok(text.trim_start_matches('\u{feff}').to_owned())
    };
    read().with_context(|| format!("{}: cannot be read", path.display()))
}
