//! The JSON files of a library.

use std::fs;
use std::path::Path;

use lorakit_format::{atomic, read_text};
use serde::{Deserialize, Serialize};

use crate::error::{AdapterError, Result, Within};

/// Reads a file that lorakit wrote.
pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let parsed = serde_json::from_str(&read_text(path)?);
    parsed.map_err(|source| AdapterError::Json { path: path.to_owned(), source })
}

/// Reads a file that lorakit wrote, if it exists.
pub(crate) fn read_json_if_exists<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>> {
    match read_json(path) {
        // Asked afterwards: another process may remove it at any moment.
        Err(_) if !path.exists() => Ok(None),
        read => read.map(Some),
    }
}

/// Writes a file that appears whole, indented and with a final line break.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    Ok(atomic::write_file(path, json_text(value)?.as_bytes())?)
}

/// As [`write_json`], but without syncing.
pub(crate) fn write_json_unsynced<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    fs::write(path, json_text(value)?).within(|| format!("{}: cannot be written", path.display()))
}

fn json_text<T: Serialize>(value: &T) -> Result<String> {
    let text = serde_json::to_string_pretty(value).map_err(AdapterError::Serialize)?;
    Ok(text + "\n")
}
