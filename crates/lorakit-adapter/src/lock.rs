//! The right to change a library, which one process at a time has.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::Path;

use anyhow::{Context, Result};

use crate::library::{EXPERTS, Library, RUNS, ensure_no_link, ensure_no_links};
use crate::models::MODELS;
use lorakit_format::atomic;

pub(crate) const LOCK_FILE: &str = ".lock";

/// The right to change a library, given back when dropped or when the process ends.
#[derive(Debug)]
pub struct LibraryLock {
    _file: File,
}

impl Library {
    /// Waits until no other process changes the library, then keeps others from doing so. The lock
    /// is the operating system's, which a killed process gives back; what such a process left half
    /// done is settled here.
    ///
    /// # Errors
    /// If the lock's file cannot be made, or leftovers cannot be removed.
    pub fn lock(&self) -> Result<LibraryLock> {
        let file = lock_file(self.root())?;
        file.lock().with_context(|| self.root().join(LOCK_FILE).display().to_string())?;
        self.settled(file)
    }

    /// The same without waiting: `None` where another process holds the lock.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn try_lock(&self) -> Result<Option<LibraryLock>> {
        let file = lock_file(self.root())?;
        match file.try_lock() {
            Ok(()) => self.settled(file).map(Some),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).context(self.root().join(LOCK_FILE).display().to_string()),
        }
    }

    fn settled(&self, file: File) -> Result<LibraryLock> {
        // Again: what a link that came since leads to is not ours to tidy.
        ensure_no_links(self.root())?;
        let folders = [self.root().join(EXPERTS), self.root().join(MODELS), self.routers_folder()];
        for folder in std::iter::once(self.root().to_owned()).chain(folders) {
            if folder.is_dir() {
                atomic::recover(&folder)?;
            }
        }
        if let Ok(runs) = fs::read_dir(self.root().join(RUNS)) {
            for run in runs.flatten().filter(|run| run.file_type().is_ok_and(|kind| kind.is_dir())) {
                atomic::recover(&run.path())?;
            }
        }
        self.take_out_half_added()?;
        Ok(LibraryLock { _file: file })
    }
}

/// The file whose lock is the library's; nothing is ever written to it.
fn lock_file(root: &Path) -> Result<File> {
    let path = root.join(LOCK_FILE);
    ensure_no_link(&path)?;
    let open = OpenOptions::new().create(true).append(true).open(&path);
    open.with_context(|| format!("{}: the library cannot be changed", path.display()))
}

/// Waits for the lock of the library at `root`, of which nothing more may be there than its folder.
pub(crate) fn alone(root: &Path) -> Result<LibraryLock> {
    let file = lock_file(root)?;
    file.lock().with_context(|| root.join(LOCK_FILE).display().to_string())?;
    Ok(LibraryLock { _file: file })
}
