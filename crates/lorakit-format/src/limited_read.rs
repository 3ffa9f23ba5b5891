//! Size-limited text files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::FormatError;
use crate::lfs_pointer::refuse_lfs_pointer;

/// The largest file of settings or records that is read, in bytes. An expert's record keeps its losses, of which a long
/// training run has millions.
const SIZE_LIMIT: u64 = 1 << 28;

/// Reads the text of a file of at most 256 MiB, without its byte order mark.
///
/// # Errors
/// If the file cannot be read, is longer (as a device may be), is not UTF-8, or is a pointer of Git LFS.
pub fn read_text(path: &Path) -> Result<String, FormatError> {
    Ok(read_text_up_to(path, SIZE_LIMIT)?.trim_start_matches('\u{feff}').to_owned())
}

/// Reads the text of a file of at most `limit` bytes, exactly as it is.
///
/// # Errors
/// As [`read_text`].
pub fn read_text_up_to(path: &Path, limit: u64) -> Result<String, FormatError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(limit.saturating_add(1)).read_to_string(&mut text))
        .map_err(FormatError::io(path, "read"))?;
    refuse_lfs_pointer(path, text.as_bytes())?;
    if text.len() as u64 > limit {
        return Err(FormatError::TooLong { path: path.to_owned(), limit });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_text_has_a_size_limit_and_loses_its_byte_order_mark() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}text").unwrap();
        assert_eq!(read_text(file.path()).unwrap(), "text");
        assert_eq!(read_text_up_to(file.path(), 7).unwrap(), "\u{feff}text");
        let error = read_text_up_to(file.path(), 6).unwrap_err().to_string();
        assert!(error.contains("longer than 6 bytes"), "{error}");
    }
}
