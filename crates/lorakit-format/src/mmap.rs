//! Memory-mapped files, and bytes that may be mapped, owned or static.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::FormatError;
use crate::lfs_pointer::refuse_lfs_pointer;

/// A read-only memory map of a file. Pages take memory from when they are read until they are released.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps the file at `path`, which must not be truncated while it is mapped.
    ///
    /// # Errors
    /// If the file cannot be opened or mapped, or is a pointer of Git LFS.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let file = File::open(path).map_err(FormatError::io(path, "opened"))?;
        // SAFETY: a map is sound as long as the file is not truncated. A library's files are only ever replaced by
        // renaming, which leaves the mapped one as it is; a base's files are the user's to leave alone.
        let map = unsafe { Mmap::map(&file) }.map_err(FormatError::io(path, "mapped"))?;
        refuse_lfs_pointer(path, &map)?;
        Ok(Self(map))
    }

    /// Releases the memory that the file's pages take in this process; they are read again when next needed. Where the
    /// system cannot do so, nothing is lost but memory.
    pub fn release_pages(&self) {
        // SAFETY: the advice is unchecked because a private map would lose what was written to it. This one is shared
        // with the file and only read (`Mmap::map`: MAP_SHARED, PROT_READ), so that a slice, in whatever thread, reads
        // the same bytes before and after, as long as the file is not truncated, which `open` relies on already.
        #[cfg(unix)]
        let _ = unsafe { self.0.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// The bytes of a file: mapped, in memory, or part of the program. Cloning shares them.
#[derive(Clone, Debug)]
pub enum FileBytes {
    /// A memory-mapped file.
    Mapped(Arc<MappedFile>),
    /// Bytes in memory.
    Owned(Arc<[u8]>),
    /// Bytes inside the binary.
    Static(&'static [u8]),
}

impl FileBytes {
    /// Maps the file at `path`; see [`MappedFile::open`].
    ///
    /// # Errors
    /// As [`MappedFile::open`].
    pub fn map(path: &Path) -> Result<Self, FormatError> {
        Ok(Self::Mapped(Arc::new(MappedFile::open(path)?)))
    }

    /// Releases a mapped file's pages ([`MappedFile::release_pages`]); other bytes stay in memory.
    pub fn release_pages(&self) {
        if let Self::Mapped(file) = self {
            file.release_pages();
        }
    }
}

impl Deref for FileBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(file) => file,
            Self::Owned(bytes) => bytes,
            Self::Static(bytes) => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn released_pages_are_read_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let mapped = MappedFile::open(file.path()).unwrap();
        let (before, after) = mapped.split_at(50_000);
        assert_eq!(before, &bytes[..50_000]);
        if cfg!(target_os = "linux") {
            assert!(resident(&mapped) > 0);
        }
        mapped.release_pages();
        if cfg!(target_os = "linux") {
            assert_eq!(resident(&mapped), 0);
        }
        assert_eq!((before, after), bytes.split_at(50_000));
    }

    /// The resident size of a map in KB, from Linux's /proc/self/smaps.
    fn resident(mapped: &MappedFile) -> usize {
        let start = format!("{:x}-", mapped.as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }
}
