//! The content of a file: read whole, hashed and decompressed.

use std::fs;
use std::io;
use std::path::Path;

use lorakit_format::hash::sha256;
use lorakit_format::refuse_lfs_pointer;

use crate::error::{Result, TaskError};
use crate::source::gzip;

/// How files begin that are read nowhere, and what to say of them.
const UNREADABLE: [(&[u8], &str); 6] = [
    (b"BZh91AY&SY", "a file compressed with bzip2; decompress it, or compress it with gzip"),
    (b"\xfd7zXZ\0", "a file compressed with xz; decompress it, or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "a file compressed with zstd; decompress it, or compress it with gzip"),
    (b"PK\x03\x04", "a ZIP archive; extract its files"),
    (b"\xff\xfe", "text in UTF-16; convert it to UTF-8"),
    (b"\xfe\xff", "text in UTF-16; convert it to UTF-8"),
];

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
        if let Some((_, kind)) = UNREADABLE.iter().find(|(start, _)| bytes.starts_with(start)) {
            return Err(TaskError::Data(format!("{what}: {kind}")));
        }
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
