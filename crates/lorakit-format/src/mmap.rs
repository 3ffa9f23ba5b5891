//! A file of weights, memory-mapped.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use anyhow::Result;
use memmap2::Mmap;

/// The bytes of a file, which take memory from when they are looked at until they are let go.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// The file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        // SAFETY: a map is sound while nobody truncates the file under it. Files of a library are only
        // ever replaced by renaming, which leaves the mapped one as it is.
        Ok(Self(unsafe { Mmap::map(&file)? }))
    }

    /// Lets the memory go that the file takes here. Where it cannot be let go, nothing is lost but memory.
    pub fn let_go(&self) {
        // SAFETY: the advice is unchecked since a private map would lose what was written to it. This one is shared with
        // the file and is only read (`Mmap::map`: MAP_SHARED, PROT_READ), so that a slice, in whatever thread, reads the
        // same bytes before and after, as long as nobody truncates the file, which `open` relies on already.
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_let_go_is_read_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| (i % 251) as u8).collect();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let mapped = MappedFile::open(file.path()).unwrap();
        let (before, after) = mapped.split_at(50_000);
        assert_eq!(before, &bytes[..50_000]);
        if cfg!(target_os = "linux") {
            assert!(resident(&mapped) > 0);
        }
        mapped.let_go();
        if cfg!(target_os = "linux") {
            assert_eq!(resident(&mapped), 0);
        }
        assert_eq!((before, after), bytes.split_at(50_000));
    }

    /// How many KB of a map are in memory, by what Linux says of it.
    fn resident(mapped: &MappedFile) -> usize {
        let start = format!("{:x}-", mapped.as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }
}
