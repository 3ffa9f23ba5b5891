//! `expert.json`, the record beside an adapter or a model.

use anyhow::{Context as _, Result};
use lorakit_adapter::ExpertRecord;
use std::path::Path;

/// The record in an adapter's folder; `None` for a folder that PEFT wrote.
///
/// # Errors
/// Where the file is there and cannot be read.
pub fn record_beside(folder: &Path) -> Result<Option<ExpertRecord>> {
    read_record(&folder.join("expert.json"))
}

/// The record in a file; `None` where there is no such file.
pub(crate) fn read_record(path: &Path) -> Result<Option<ExpertRecord>> {
    if !path.is_file() {
        return Ok(None);
    }
    serde_json::from_str(&lorakit_format::read_text(path)?)
        .map(Some)
        .with_context(|| format!("{}: not as lorakit writes it", path.display()))
}
