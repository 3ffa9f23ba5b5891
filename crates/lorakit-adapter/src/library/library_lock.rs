//! The locks of a library: one process at a time may change it, or several each train a part of one run.
//!
//! A process that trains a part of a run holds the lock of that part's folder for as long as it trains, and the library's
//! for the moment of each change. Every other process that changes a library holds the library's lock until it ends, and
//! takes it only while nobody holds a part's. A part is locked under the library's lock, so that none can start then.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use lorakit_format::{FolderLock, LockAttempt};

use crate::error::Result;
use crate::library::library_layout::{ADDING_FILE, LOCK_FILE, PART, RUNS, lease_root, refuse_link, subfolder_names};

/// The right to change a library or a part of a run, released when its last clone is dropped or when the process ends.
#[derive(Clone, Debug)]
pub struct LibraryLock(Arc<FolderLock>);

impl LibraryLock {
    fn new(lock: FolderLock) -> Self {
        Self(Arc::new(lock))
    }

    /// Checks that no other process has taken over, which is possible where locks are leases; see
    /// [`FolderLock::ensure_held`].
    ///
    /// # Errors
    /// If another process has.
    pub fn ensure_held(&self) -> Result<()> {
        Ok(self.0.ensure_held()?)
    }

    /// Whether a previous holder was killed, and may have left something half done in the library at `root`. A loss of power
    /// may undo the lock's mark of that, but not an addition's file, which is synced.
    pub(crate) fn needs_recovery(&self, root: &Path) -> bool {
        self.0.after_crash() || root.join(ADDING_FILE).exists()
    }

    /// Says that what the previous holder left half done is recovered.
    pub(crate) fn recovered(&self) {
        self.0.recovered();
    }
}

/// Asked before each pause of a process that waits for a lock: whether it is to go on waiting.
pub type KeepWaiting<'a> = dyn FnMut() -> bool + 'a;

/// Recovers what a killed process left half done in a library.
pub(crate) type Recover<'a> = dyn Fn() -> Result<()> + 'a;

/// Waits for the lock of the library at `root`, of which only the folder need exist; `None` where `keep_waiting` ended that.
pub(crate) fn acquire(root: &Path, keep_waiting: &mut KeepWaiting) -> Result<Option<LibraryLock>> {
    let mut attempt = attempt(root, root)?;
    wait(keep_waiting, || Ok(attempt.try_acquire()?.map(LibraryLock::new)))
}

/// As [`acquire`], but only when no other process trains a part of a run of the library.
pub(crate) fn acquire_alone(
    root: &Path,
    keep_waiting: &mut KeepWaiting,
    recover: &Recover,
) -> Result<Option<LibraryLock>> {
    let mut library = attempt(root, root)?;
    let mut parts: BTreeMap<PathBuf, LockAttempt> = BTreeMap::new();
    wait(keep_waiting, || {
        let Some(lock) = try_recovered(root, &mut library, recover)? else { return Ok(None) };
        for folder in part_folders(root)? {
            if !parts.contains_key(&folder) {
                parts.insert(folder.clone(), attempt(root, &folder)?);
            }
            if let Some(part) = parts.get_mut(&folder) {
                match part.try_acquire()? {
                    // Nobody asks a part's lock for a crash: parts are recovered whenever they are locked.
                    Some(lock) => lock.recovered(),
                    None => return Ok(None),
                }
            }
        }
        Ok(Some(lock))
    })
}

/// Waits for the locks of the library at `root` and of a part in `folder`, which exists.
pub(crate) fn acquire_part(
    root: &Path,
    folder: &Path,
    keep_waiting: &mut KeepWaiting,
    recover: &Recover,
) -> Result<Option<(LibraryLock, LibraryLock)>> {
    let (mut library, mut part) = (attempt(root, root)?, attempt(root, folder)?);
    wait(keep_waiting, || {
        let Some(library) = try_recovered(root, &mut library, recover)? else { return Ok(None) };
        Ok(part.try_acquire()?.map(|part| (library, LibraryLock::new(part))))
    })
}

/// Locks a library, and recovers at once if a previous holder was killed: the lock may be given up again for want
/// of a part's, and then tells nobody any more.
fn try_recovered(root: &Path, library: &mut LockAttempt, recover: &Recover) -> Result<Option<LibraryLock>> {
    let Some(lock) = library.try_acquire()?.map(LibraryLock::new) else { return Ok(None) };
    if lock.needs_recovery(root) {
        recover()?;
        lock.recovered();
    }
    Ok(Some(lock))
}

fn attempt(root: &Path, folder: &Path) -> Result<LockAttempt> {
    refuse_link(&folder.join(LOCK_FILE))?;
    Ok(LockAttempt::new(&lease_root(root), folder))
}

/// The folders of the parts of all runs.
pub(crate) fn part_folders(root: &Path) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for run in subfolder_names(root, RUNS)? {
        let run = Path::new(RUNS).join(run).display().to_string();
        let names = subfolder_names(root, &run)?;
        folders.extend(names.iter().filter(|name| name.starts_with(PART)).map(|name| root.join(&run).join(name)));
    }
    Ok(folders)
}

/// Repeats an attempt, with longer and longer pauses, until it succeeds.
fn wait<T>(keep_waiting: &mut KeepWaiting, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    const LONGEST: Duration = Duration::from_millis(500);
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(lock) = attempt()? {
            return Ok(Some(lock));
        }
        if !keep_waiting() {
            return Ok(None);
        }
        sleep(pause);
        pause = LONGEST.min(2 * pause);
    }
}
