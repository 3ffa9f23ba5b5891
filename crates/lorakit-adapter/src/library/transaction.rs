//! Changes of a library under its lock, and recovery from those that a killed process left half done.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use lorakit_format::atomic;

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result, Within};
use crate::library::expert_record::ExpertRecord;
use crate::library::json_file::{read_json_if_exists, write_json};
use crate::library::library_layout::{ADDING_FILE, EXPERTS, MODELS, PART, RUNS, lease_root, refuse_link, refuse_links};
use crate::library::library_lock::{self, KeepWaiting, LibraryLock};
use crate::library::library_store::Library;

impl Library {
    /// Waits until no other process changes the library or trains a part of a run, then keeps others from doing so, and
    /// recovers what a killed process left half done. A killed process gives the lock up.
    ///
    /// # Errors
    /// If the lock's file cannot be created, or leftovers cannot be removed.
    pub fn lock(&self) -> Result<LibraryLock> {
        loop {
            if let Some(lock) = self.lock_while(&mut || true)? {
                return Ok(lock);
            }
        }
    }

    /// As [`lock`](Self::lock); `None` where `keep_waiting`, which is asked before each pause, ended the waiting.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn lock_while(&self, keep_waiting: &mut KeepWaiting) -> Result<Option<LibraryLock>> {
        let Some(lock) = library_lock::acquire_alone(self.root(), keep_waiting, &|| self.recover())? else {
            return Ok(None);
        };
        self.recover()?;
        library_lock::part_folders(self.root())?.iter().try_for_each(|folder| atomic::recover(folder))?;
        Ok(Some(lock))
    }

    /// As [`lock`](Self::lock) without waiting: `None` where another process holds the lock or trains a part.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn try_lock(&self) -> Result<Option<LibraryLock>> {
        self.lock_while(&mut || false)
    }

    /// Waits for the right to make one change and no more, beside processes that train parts of a run.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn lock_for_change(&self) -> Result<LibraryLock> {
        loop {
            if let Some(lock) = self.lock_for_change_while(&mut || true)? {
                return Ok(lock);
            }
        }
    }

    /// As [`lock_for_change`](Self::lock_for_change); `None` where `keep_waiting`, which is asked before each pause, ended
    /// the waiting.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn lock_for_change_while(&self, keep_waiting: &mut KeepWaiting) -> Result<Option<LibraryLock>> {
        let Some(lock) = library_lock::acquire(self.root(), keep_waiting)? else { return Ok(None) };
        // A look at every folder before each change would take longer the more experts there are.
        if lock.needs_recovery(self.root()) {
            self.recover()?;
            lock.recovered();
        }
        Ok(Some(lock))
    }

    /// How long to wait for a lock of this library so as to take it over from a process that was killed; `None` where locks
    /// are the operating system's, and such a process gives them up at once.
    ///
    /// # Errors
    /// If the file that says how long locks outlive such a process cannot be read or written.
    pub fn takeover_time(&self) -> Result<Option<Duration>> {
        Ok(lorakit_format::takeover_time(&lease_root(self.root()))?)
    }

    /// Waits for the lock of the part `part` of the run `id`, whose folder is created, and of the library itself. The
    /// caller plans its work under both, and then drops the library's. `None` where `keep_waiting` ended the waiting.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn lock_part(
        &self,
        id: &str,
        part: usize,
        keep_waiting: &mut KeepWaiting,
    ) -> Result<Option<(LibraryLock, LibraryLock)>> {
        let folder = self.part_folder(id, part)?;
        fs::create_dir_all(&folder).within(|| format!("{}: cannot be created", folder.display()))?;
        let locks = library_lock::acquire_part(self.root(), &folder, keep_waiting, &|| self.recover())?;
        if let Some((_, part)) = &locks {
            atomic::recover(&folder)?;
            part.recovered();
        }
        Ok(locks)
    }

    /// The folder of the part `part` of the run `id`.
    ///
    /// # Errors
    /// If `id` is not a valid name, or a folder is a link.
    pub fn part_folder(&self, id: &str, part: usize) -> Result<PathBuf> {
        let folder = self.run_folder(id)?.join(format!("{PART}{part}"));
        refuse_link(&folder)?;
        Ok(folder)
    }

    /// Recovers what a killed process left half done; only for the holder of the lock.
    pub(super) fn recover(&self) -> Result<()> {
        // Again: what a link that was put there since opening leads to is not ours to clean up.
        refuse_links(self.root())?;
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
        self.rollback()
    }

    /// Adds several experts, all or none: after a failure or a kill, a partial addition is removed, at once or by the
    /// next process that takes the [`lock`](Self::lock).
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_all(&self, experts: &[(&str, &Adapter, Option<&ExpertRecord>)]) -> Result<()> {
        let names: Vec<&str> = experts.iter().map(|(name, ..)| *name).collect();
        // An addition that was not completed is undone while its names are still recorded.
        self.rollback()?;
        for name in &names {
            // Before the names are recorded: a rollback must not remove what existed before.
            refuse_link(&self.expert_path(name)?)?;
            if self.contains(name) {
                return Err(AdapterError::ExpertExists { root: self.root().to_owned(), name: (*name).to_owned() });
            }
        }
        // Another process may have taken over the lock and be adding: its file must not be overwritten.
        self.ensure_held()?;
        write_json(&self.root().join(ADDING_FILE), &names)?;
        let added = match experts {
            [(name, adapter, record)] => self.insert(name, adapter, *record),
            _ => self.insert_together(experts),
        };
        // Before the addition is complete: no expert may be left without its base.
        match added.and_then(|()| self.record_base()) {
            Ok(()) => self.remove_adding_file(),
            Err(error) => {
                // The first error is the one to report; what cannot be removed now will be at the next lock.
                let _ = self.rollback();
                Err(error)
            }
        }
    }

    /// Adds several experts, and then syncs them together: until that the names are recorded, and a loss of power is no other
    /// failure than a kill.
    fn insert_together(&self, experts: &[(&str, &Adapter, Option<&ExpertRecord>)]) -> Result<()> {
        let mut folders = Vec::new();
        for (name, adapter, record) in experts {
            self.insert_unsynced(name, adapter, *record)?;
            folders.push(self.expert_path(name)?);
        }
        Ok(atomic::sync_created(&self.root().join(EXPERTS), &folders)?)
    }

    /// The names of experts that are being added together, or were when a process was killed.
    pub(super) fn names_in_addition(&self) -> Result<Option<Vec<String>>> {
        read_json_if_exists(&self.root().join(ADDING_FILE))
    }

    /// Removes the experts of an addition that was not completed.
    fn rollback(&self) -> Result<()> {
        let Some(names) = self.names_in_addition()? else { return Ok(()) };
        for name in names.iter().filter(|name| self.contains(name)) {
            self.remove(name)?;
        }
        self.remove_adding_file()
    }

    /// Ends an addition, unless another process has taken over: the file is then of its own addition.
    fn remove_adding_file(&self) -> Result<()> {
        self.ensure_held()?;
        Ok(atomic::remove_file(&self.root().join(ADDING_FILE))?)
    }
}
