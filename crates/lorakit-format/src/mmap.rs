//! Memory-mapped files, and bytes that may be mapped, in memory or static.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use memmap2::{Mmap, MmapMut};

use crate::error::FormatError;
use crate::lfs_pointer::refuse_lfs_pointer;

/// The size of a huge page of most machines, in bytes. On others, memory is in small pages.
const HUGE_PAGE: usize = 2 << 20;

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
    /// Bytes in memory that is mapped for them alone.
    Anonymous(Arc<Mmap>),
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

    /// At least `len` bytes of memory, of which `fill` sets the first `len`; they are zero before. The system is asked for
    /// huge pages, whose faults take less time than those of as much memory in small ones.
    ///
    /// # Errors
    /// If the system has not as much memory.
    pub fn filled(len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Self, FormatError> {
        let failed = |source| FormatError::Memory { bytes: len, source };
        let whole = len / HUGE_PAGE * HUGE_PAGE;
        // Linux lets a map begin at a huge page if it is as long as some of them.
        let mapped = if whole == 0 { len } else { len.next_multiple_of(HUGE_PAGE) };
        let mut map = MmapMut::map_anon(mapped).map_err(failed)?;
        #[cfg(target_os = "linux")]
        if whole > 0 {
            // A system without huge pages refuses, and hands out small ones.
            let _ = map.advise_range(memmap2::Advice::HugePage, 0, whole);
        }
        fill(&mut map[..len]);
        Ok(Self::Anonymous(Arc::new(map.make_read_only().map_err(failed)?)))
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
            Self::Anonymous(map) => map,
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

    #[test]
    fn filled_bytes_are_those_that_were_set_and_zero_elsewhere() {
        for len in [0, 1, 5000, HUGE_PAGE + 3] {
            let set = |bytes: &mut [u8]| bytes.iter_mut().step_by(7).for_each(|byte| *byte = 9);
            let filled = FileBytes::filled(len, set).unwrap();
            assert!(filled.len() >= len);
            let expected = |at: usize| if at < len && at.is_multiple_of(7) { 9 } else { 0 };
            assert!(filled.iter().enumerate().all(|(at, &byte)| byte == expected(at)));
        }
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
