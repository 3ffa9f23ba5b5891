//! Several experts that come into a library together or not at all.

use std::fs;

use anyhow::{Result, ensure};

use crate::adapter::Adapter;
use crate::expert::ExpertRecord;
use crate::library::{Library, read_json, write_json};

/// The names of experts that are being added together; there only while that is so.
const ADDING_FILE: &str = ".adding.json";

impl Library {
    /// Adds several experts, all or none: what a failure or a kill leaves of them is taken out again,
    /// now or by whoever takes the [`lock`](Self::lock) next.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn add_all(&self, experts: &[(&str, &Adapter, Option<&ExpertRecord>)]) -> Result<()> {
        let names: Vec<&str> = experts.iter().map(|(name, ..)| *name).collect();
        for name in &names {
            // Before the names are put down: what is taken out again must not have been there before.
            ensure!(!self.contains(name), "{}: the expert `{name}` exists already", self.root().display());
        }
        write_json(&self.root().join(ADDING_FILE), &names)?;
        let added = experts.iter().try_for_each(|(name, adapter, record)| self.put_in(name, adapter, *record));
        match added {
            Ok(()) => {
                fs::remove_file(self.root().join(ADDING_FILE))?;
                self.record_base()
            }
            Err(error) => {
                // The first error is the one to be told; what cannot be taken out now will be by the next lock.
                let _ = self.take_out_half_added();
                Err(error)
            }
        }
    }

    /// Takes out the experts of an addition that came to no end.
    pub(crate) fn take_out_half_added(&self) -> Result<()> {
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
