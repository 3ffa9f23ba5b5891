//! Size-limited text files.

use std::fs::File;
use std::io::{self, Read};
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
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(FormatError::io(path, "read"))?;
    refuse_lfs_pointer(path, &bytes)?;
    // Before the text is decoded: the limit may cut a character.
    if bytes.len() as u64 > limit {
        return Err(FormatError::TooLong { path: path.to_owned(), limit });
    }
    String::from_utf8(bytes)
        .map_err(|error| FormatError::io(path, "read")(io::Error::new(io::ErrorKind::InvalidData, error)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::error_chain;

    #[test]
    fn a_text_has_a_size_limit_and_loses_its_byte_order_mark() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\u{feff}text").unwrap();
        assert_eq!(read_text(file.path()).unwrap(), "text");
        assert_eq!(read_text_up_to(file.path(), 7).unwrap(), "\u{feff}text");
        let error = read_text_up_to(file.path(), 6).unwrap_err().to_string();
        assert!(error.contains("longer than 6 bytes"), "{error}");
        let cut = read_text_up_to(file.path(), 1).unwrap_err().to_string();
        assert!(cut.contains("longer than 1 bytes"), "{cut}");
        std::fs::write(file.path(), [b'a', 0xff]).unwrap();
        let error = error_chain(&read_text(file.path()).unwrap_err());
        assert!(error.contains("invalid utf-8") && error.contains("cannot be read"), "{error}");
    }
}
