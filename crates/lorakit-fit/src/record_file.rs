//! `expert.json`, the record beside an adapter or a model.

use crate::error::{FitError, Result};
use lorakit_adapter::{EXPERT_RECORD_FILE, ExpertRecord};
use serde::de::DeserializeOwned;
use std::path::Path;

/// The record in an adapter's folder; `None` for a folder that PEFT wrote.
///
/// # Errors
/// If the file exists and cannot be read.
pub fn record_beside(folder: &Path) -> Result<Option<ExpertRecord>> {
    read_record(&folder.join(EXPERT_RECORD_FILE))
}

/// The record in a file; `None` if the file does not exist.
pub(crate) fn read_record(path: &Path) -> Result<Option<ExpertRecord>> {
    if !path.is_file() {
        return Ok(None);
    }
    parse_json(path).map(Some)
}

/// What a JSON file holds.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = lorakit_format::read_text(path)?;
    serde_json::from_str(&text).map_err(|source| FitError::Json { path: path.to_owned(), source })
}
