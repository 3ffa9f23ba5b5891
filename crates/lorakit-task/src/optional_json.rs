//! JSON files that may be absent, and that Python may have written.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use lorakit_format::non_finite_json::non_finite_as_null;
use serde_json::Value;

use crate::error::{At, Result, TaskError};

/// The byte order mark of UTF-8, which some editors write.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The JSON of a file; None if the file is absent.
pub(crate) fn read_json(path: &Path) -> Result<Option<Value>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(TaskError::read(path.display())(error)),
    };
    let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
    let value = serde_json::from_slice(&non_finite_as_null(text));
    value.map(Some).map_err(TaskError::from).at(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn what_editors_and_python_write_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        assert_eq!(read_json(&path).unwrap(), None);
        fs::write(&path, "\u{feff}{\"a\": NaN, \"b\": [1]}").unwrap();
        assert_eq!(read_json(&path).unwrap(), Some(json!({"a": null, "b": [1]})));
        fs::write(&path, "{").unwrap();
        assert!(read_json(&path).unwrap_err().to_string().contains("config.json"));
    }
}
