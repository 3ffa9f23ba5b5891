//! Changes of a library under its lock, and recovery from those that a killed process left half done.

use std::fs;

use lorakit_format::atomic;

use crate::adapter::Adapter;
use crate::error::{AdapterError, Result};
use crate::library::expert_record::ExpertRecord;
use crate::library::json_file::{read_json, write_json};
use crate::library::library_layout::{EXPERTS, MODELS, RUNS, refuse_links};
use crate::library::library_lock::LibraryLock;
use crate::library::library_store::Library;

/// The names of experts that are being added together; it exists only during that time.
const ADDING_FILE: &str = ".adding.json";

impl Library {
    /// Waits until no other process changes the library, then keeps others from doing so, and recovers what a killed
    /// process left half done. The lock is the operating system's, so that a killed process gives it up.
    ///
    /// # Errors
    /// If the lock's file cannot be created, or leftovers cannot be removed.
    pub fn lock(&self) -> Result<LibraryLock> {
        let lock = LibraryLock::acquire(self.root())?;
        self.recover()?;
        Ok(lock)
    }

    /// The same without waiting: `None` where another process holds the lock.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub fn try_lock(&self) -> Result<Option<LibraryLock>> {
        let Some(lock) = LibraryLock::try_acquire(self.root())? else { return Ok(None) };
        self.recover()?;
        Ok(Some(lock))
    }

    /// Recovers what a killed process left half done; only for the holder of the lock.
    fn recover(&self) -> Result<()> {
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
        for name in &names {
            // Before the names are recorded: a rollback must not remove what existed before.
            if self.contains(name) {
                return Err(AdapterError::ExpertExists { root: self.root().to_owned(), name: (*name).to_owned() });
            }
        }
        write_json(&self.root().join(ADDING_FILE), &names)?;
        let added = experts.iter().try_for_each(|(name, adapter, record)| self.insert(name, adapter, *record));
        match added {
            Ok(()) => {
                fs::remove_file(self.root().join(ADDING_FILE))?;
                self.record_base()
            }
            Err(error) => {
                // The first error is the one to report; what cannot be removed now will be at the next lock.
                let _ = self.rollback();
                Err(error)
            }
        }
    }

    /// Removes the experts of an addition that was not completed.
    fn rollback(&self) -> Result<()> {
        let file = self.root().join(ADDING_FILE);
        if !file.exists() {
            return Ok(());
        }
        let names: Vec<String> = read_json(&file)?;
        for name in names.iter().filter(|name| self.contains(name)) {
            self.remove(name)?;
        }
        Ok(fs::remove_file(file)?)
    }
}
