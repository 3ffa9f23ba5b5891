//! Writing JSON for people to read.

use std::path::Path;

use lorakit_format::atomic::write_file;
use serde::Serialize;

use crate::error::{ClusterError, Result};

/// Writes indented JSON with a newline at the end.
pub(crate) fn write_pretty(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text =
        serde_json::to_string_pretty(value).map_err(|error| ClusterError::Inconsistent(error.to_string()))?;
    text.push('\n');
    Ok(write_file(path, text.as_bytes())?)
}
