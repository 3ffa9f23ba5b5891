//! The exclusive right to change a folder, among the processes of one machine or of several that share the folder.
//!
//! A lock is the operating system's (flock), which a killed process gives up at once. Where the file system has none, or
//! keeps it within a machine, it is a [lease](crate::lease).

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::atomic;
use crate::error::FormatError;
use crate::lease::{HEARTBEATS_PER_LEASE, Lease, LeaseWatch};
use crate::limited_read::read_text;
use crate::mount_options::keeps_flock_local;

/// The file that is locked. It is empty unless its holder is at work or was killed.
const LOCK_FILE: &str = ".lock";

/// The file that makes all locks below its folder leases. It holds the seconds after which a silent holder counts as dead.
const LEASE_FILE: &str = ".lease";

/// The content of a new [`LEASE_FILE`].
const LEASE_SECONDS: u64 = 60;

/// Linux's number of the error "no locks available", which has no `ErrorKind`.
const ENOLCK: i32 = 37;

/// The lock of a folder, released when dropped.
#[derive(Debug)]
pub struct FolderLock {
    held: Held,
    after_crash: AtomicBool,
}

#[derive(Debug)]
enum Held {
    Flock(File),
    Lease(Lease),
}

/// Repeated attempts to lock a folder. They share what they saw: only time tells whether the holder of a lease is alive.
#[derive(Debug)]
pub struct LockAttempt {
    root: PathBuf,
    folder: PathBuf,
    watch: LeaseWatch,
}

impl LockAttempt {
    /// Attempts to lock `folder`, in or below `root`, which decides on the kind of lock: all processes that lock `folder`
    /// must give the same root.
    pub fn new(root: &Path, folder: &Path) -> Self {
        Self { root: root.to_owned(), folder: folder.to_owned(), watch: LeaseWatch::default() }
    }

    /// Locks the folder; `None` where another process holds the lock.
    ///
    /// # Errors
    /// If files in the folder cannot be created.
    pub fn try_acquire(&mut self) -> Result<Option<FolderLock>, FormatError> {
        if let Some(expires) = lease_time(&self.root)? {
            return self.try_lease(expires);
        }
        match try_flock(&self.folder.join(LOCK_FILE))? {
            Flock::Unsupported => {
                let expires = start_leases(&self.root)?;
                self.try_lease(expires)
            }
            Flock::HeldByOther => Ok(None),
            Flock::Acquired { file, after_crash } => Ok(Some(FolderLock::new(Held::Flock(file), after_crash))),
        }
    }

    /// Waits until the folder is locked.
    ///
    /// # Errors
    /// As [`try_acquire`](Self::try_acquire).
    pub fn acquire(&mut self) -> Result<FolderLock, FormatError> {
        loop {
            if let Some(lock) = self.try_acquire()? {
                return Ok(lock);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn try_lease(&mut self, expires: Duration) -> Result<Option<FolderLock>, FormatError> {
        let lease = Lease::try_acquire(&self.folder, expires, &mut self.watch)?;
        Ok(lease.map(|(lease, after_crash)| FolderLock::new(Held::Lease(lease), after_crash)))
    }
}

impl FolderLock {
    fn new(held: Held, after_crash: bool) -> Self {
        Self { held, after_crash: AtomicBool::new(after_crash) }
    }

    /// Checks that the lock is still this process's, which must precede every change: a process that was suspended for
    /// longer than a lease lasts may have lost it.
    ///
    /// # Errors
    /// If another process has taken over.
    pub fn ensure_held(&self) -> Result<(), FormatError> {
        match &self.held {
            Held::Flock(_) => Ok(()),
            Held::Lease(lease) => lease.ensure_held(),
        }
    }

    /// Whether the previous holder ended without releasing the lock, and may have left something half done.
    pub fn after_crash(&self) -> bool {
        self.after_crash.load(Ordering::Relaxed)
    }

    /// Says that this is done or undone. A lock that is released before says to its next holder what it said to this one.
    pub fn recovered(&self) {
        self.after_crash.store(false, Ordering::Relaxed);
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        let after_crash = self.after_crash();
        match &mut self.held {
            Held::Flock(_) if after_crash => {}
            Held::Flock(file) => {
                // If this fails, the next holder looks for leftovers in vain.
                let _ = file.set_len(0);
            }
            Held::Lease(lease) if after_crash => lease.abandon(),
            Held::Lease(_) => {}
        }
    }
}

enum Flock {
    Acquired { file: File, after_crash: bool },
    HeldByOther,
    Unsupported,
}

fn try_flock(path: &Path) -> Result<Flock, FormatError> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    let mut file = opened.map_err(FormatError::io(path, "opened, so its folder cannot be changed"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(Flock::HeldByOther),
        Err(TryLockError::Error(error))
            if error.kind() == ErrorKind::Unsupported || error.raw_os_error() == Some(ENOLCK) =>
        {
            return Ok(Flock::Unsupported);
        }
        Err(TryLockError::Error(error)) => return Err(FormatError::io(path, "locked")(error)),
    }
    // On a full disk nothing can be written, and leftovers are looked for.
    let after_crash = mark(&mut file).unwrap_or(true);
    Ok(Flock::Acquired { file, after_crash })
}

/// Marks a locked file as in use; whether it was already, by a holder that was killed.
fn mark(file: &mut File) -> io::Result<bool> {
    let marked = file.metadata()?.len() > 0;
    if !marked {
        file.write_all(b"x")?;
    }
    Ok(marked)
}

/// How long attempts to lock a folder below `root` must go on to take over from a holder that died: a lease's time and a
/// beat. `None` where locks are flocks, which the dead do not hold.
///
/// # Errors
/// If the file that says how long a lease lasts cannot be read or written.
pub fn takeover_time(root: &Path) -> Result<Option<Duration>, FormatError> {
    Ok(lease_time(root)?.map(|expires| expires + expires / HEARTBEATS_PER_LEASE))
}

/// How long a lease lasts below `root`; `None` where locks are flocks.
fn lease_time(root: &Path) -> Result<Option<Duration>, FormatError> {
    let path = root.join(LEASE_FILE);
    if path.is_file() {
        let text = read_text(&path)?;
        let seconds = text.trim().parse().ok().filter(|seconds| *seconds > 0);
        return seconds.map(|seconds| Some(Duration::from_secs(seconds))).ok_or(FormatError::LeaseTime { path, text });
    }
    if keeps_flock_local(root) { start_leases(root).map(Some) } else { Ok(None) }
}

/// Makes all locks below `root` leases, on every machine.
fn start_leases(root: &Path) -> Result<Duration, FormatError> {
    let path = root.join(LEASE_FILE);
    atomic::write_file(&path, format!("{LEASE_SECONDS}\n").as_bytes())?;
    Ok(Duration::from_secs(LEASE_SECONDS))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::fs;

    #[test]
    fn one_holder_at_a_time_and_crashes_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let attempt = || LockAttempt::new(folder.path(), folder.path()).try_acquire().unwrap();
        let held = attempt().unwrap();
        assert!(!held.after_crash() && held.ensure_held().is_ok() && attempt().is_none());
        drop(held);
        assert!(!attempt().unwrap().after_crash());
        fs::write(folder.path().join(LOCK_FILE), "x").unwrap();
        assert!(attempt().unwrap().after_crash(), "a killed process left its mark");
        let again = attempt().unwrap();
        assert!(again.after_crash(), "it stays until somebody has recovered");
        again.recovered();
        drop(again);
        assert!(!attempt().unwrap().after_crash());
    }

    #[test]
    fn the_lease_file_makes_locks_leases() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(LEASE_FILE), "5\n").unwrap();
        let below = folder.path().join("below");
        fs::create_dir(&below).unwrap();
        let mut attempt = LockAttempt::new(folder.path(), &below);
        let held = attempt.try_acquire().unwrap().unwrap();
        assert!(matches!(held.held, Held::Lease(_)) && attempt.try_acquire().unwrap().is_none());
        assert!(takeover_time(folder.path()).unwrap() > Some(Duration::from_secs(5)), "longer than a lease lasts");
        fs::write(folder.path().join(LEASE_FILE), "soon").unwrap();
        let error = attempt.try_acquire().unwrap_err().to_string();
        assert!(error.contains(".lease") && error.contains("soon") && error.contains("seconds"), "{error}");
    }
}
