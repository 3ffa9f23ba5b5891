//! The content of a file: read whole, hashed and decompressed.

use std::fs;
use std::io;
use std::path::Path;

use lorakit_format::hash::sha256;
use lorakit_format::refuse_lfs_pointer;

use crate::error::{Result, TaskError};
use crate::source::gzip;

/// The content of a file.
pub(crate) struct FileContent {
    /// The hash of the file's bytes as they are on disk, in hexadecimal: what `sha256sum` prints.
    pub sha256: String,
    /// The bytes, decompressed.
    pub bytes: Vec<u8>,
}

impl FileContent {
    /// Reads a file, gzipped or not.
    pub fn read(path: &Path) -> Result<FileContent> {
        let what = path.display().to_string();
        let bytes = read_whole(path).map_err(TaskError::read(&what))?;
        refuse_lfs_pointer(path, &bytes).map_err(|error| TaskError::Data(error.to_string()))?;
        Ok(FileContent { sha256: sha256(&bytes), bytes: gzip::decompress(bytes, &what)? })
    }
}

/// The bytes of a file or a pipe. Devices are refused: they may be endless.
pub(crate) fn read_whole(path: &Path) -> io::Result<Vec<u8>> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let kind = fs::metadata(path)?.file_type();
        if kind.is_char_device() || kind.is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a device; expected a file"));
        }
    }
    fs::read(path)
}
