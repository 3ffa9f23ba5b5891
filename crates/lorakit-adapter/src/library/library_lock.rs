//! The lock of a library: one process at a time may change it.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

use crate::error::{Result, Within};
use crate::library::library_layout::{LOCK_FILE, refuse_link};

/// The right to change a library, released when dropped or when the process ends.
#[derive(Debug)]
pub struct LibraryLock {
    _file: File,
}

impl LibraryLock {
    /// Waits for the lock of the library at `root`, of which only the folder need exist.
    pub(crate) fn acquire(root: &Path) -> Result<Self> {
        let file = open(root)?;
        file.lock().within_file(&root.join(LOCK_FILE))?;
        Ok(Self { _file: file })
    }

    /// The same without waiting: `None` where another process holds the lock.
    pub(crate) fn try_acquire(root: &Path) -> Result<Option<Self>> {
        let file = open(root)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).within_file(&root.join(LOCK_FILE)),
        }
    }
}

/// Opens the file that is locked; nothing is ever written to it.
fn open(root: &Path) -> Result<File> {
    let path = root.join(LOCK_FILE);
    refuse_link(&path)?;
    let open = OpenOptions::new().create(true).append(true).open(&path);
    open.within(|| format!("{}: the library cannot be changed", path.display()))
}
