//! JSON files of a library.

use std::path::Path;

use anyhow::{Context, Result};
use lorakit_format::{atomic, read_text};
use serde::{Deserialize, Serialize};

/// Reads a file that lorakit wrote.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(path)?).with_context(|| format!("{}: not as lorakit writes it", path.display()))
}

/// Writes a file that appears whole, indented, with a line break at its end.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(atomic::write_file(path, text.as_bytes())?)
}
