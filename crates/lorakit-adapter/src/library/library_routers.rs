//! The routers of a library: `routers/NAME/` has router.json, which says what a router's state came from, and
//! router.safetensors, the state.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::library::json_file::{read_json, write_json};
use crate::library::library_layout::{ROUTERS, subfolder, subfolder_names};
use crate::library::library_store::Library;
use lorakit_format::atomic;
use lorakit_format::hash::{sha256, sha256_of_file};

const RECORD_FILE: &str = "router.json";
const STATE_FILE: &str = "router.safetensors";

/// An expert, with the weights that it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertWeights {
    /// The expert's name.
    pub name: String,
    /// SHA-256 of its weights.
    pub sha256: String,
}

/// router.json.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouterRecord<T> {
    /// SHA-256 of router.safetensors.
    pub state_sha256: String,
    /// The experts that the state came from and belongs to.
    pub experts: Vec<ExpertWeights>,
    /// What else it came from: each kind of router has its own.
    pub of: T,
}

impl Library {
    /// The folder of what routers learned; it need not exist.
    pub fn routers_folder(&self) -> PathBuf {
        self.root().join(ROUTERS)
    }

    /// The names of all routers, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn router_names(&self) -> Result<Vec<String>> {
        subfolder_names(self.root(), ROUTERS)
    }

    /// Where the state of the router `name` is or would be.
    ///
    /// # Errors
    /// If the name is none for a folder, or the folder is a link.
    pub fn router_folder(&self, name: &str) -> Result<PathBuf> {
        subfolder(self.root(), ROUTERS, name)
    }

    /// What the state of the router `name` came from; `None` where there is none.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn router_record<T: DeserializeOwned>(&self, name: &str) -> Result<Option<RouterRecord<T>>> {
        let file = self.router_folder(name)?.join(RECORD_FILE);
        if file.exists() { read_json(&file).map(Some) } else { Ok(None) }
    }

    /// The SHA-256 of the record of the router `name`, which holds those of its state and experts; `None` where there is
    /// none.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn router_sha256(&self, name: &str) -> Result<Option<String>> {
        let file = self.router_folder(name)?.join(RECORD_FILE);
        if file.exists() { Ok(Some(sha256_of_file(&file)?)) } else { Ok(None) }
    }

    /// The state of the router `name`, whose record was read: a safetensors file.
    ///
    /// # Errors
    /// If it cannot be read, or is not the one that the record is of.
    pub fn router_state<T>(&self, name: &str, record: &RouterRecord<T>) -> Result<Vec<u8>> {
        let file = self.router_folder(name)?.join(STATE_FILE);
        let place = || file.display().to_string();
        // A device would have no end.
        ensure!(file.is_file(), "{}: there is no such file; expected the state that {RECORD_FILE} is of", place());
        let bytes = fs::read(&file).with_context(place)?;
        let found = sha256(&bytes);
        ensure!(
            found == record.state_sha256,
            "{}: has the sha256 {found}, and {RECORD_FILE} records {}: the file was changed; remove the folder, and \
             have it learned anew",
            place(),
            record.state_sha256
        );
        Ok(bytes)
    }

    /// The weights of experts as they are now.
    ///
    /// # Errors
    /// If there is no such expert, or its weights cannot be read.
    pub fn expert_weights(&self, names: &[String]) -> Result<Vec<ExpertWeights>> {
        let of = |name: &String| Ok(ExpertWeights { name: name.clone(), sha256: self.weights_sha256(name)? });
        names.iter().map(of).collect()
    }

    /// The first of some experts that is no longer what it was, with what became of it; `None` where all are.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn changed_expert(&self, experts: &[ExpertWeights]) -> Result<Option<String>> {
        for ExpertWeights { name, sha256 } in experts {
            if !self.contains(name) {
                return Ok(Some(format!("the expert `{name}` is not in the library any more")));
            }
            let found = self.weights_sha256(name)?;
            if found != *sha256 {
                return Ok(Some(format!(
                    "the weights of the expert `{name}` have the sha256 {found}, and had {sha256}"
                )));
            }
        }
        Ok(None)
    }

    /// Keeps the state of a router, in place of the one of that name, if there is one. It appears whole.
    ///
    /// # Errors
    /// If the name is none for a folder, or the folder cannot be written.
    pub fn put_router<T: Serialize>(&self, name: &str, experts: &[ExpertWeights], of: &T, state: &[u8]) -> Result<()> {
        let place = self.router_folder(name)?;
        let routers = self.routers_folder();
        fs::create_dir_all(&routers).with_context(|| routers.display().to_string())?;
        atomic::replace_folder(&place, |folder| {
            atomic::write_file(&folder.join(STATE_FILE), state)?;
            let record = RouterRecord { state_sha256: sha256(state), experts: experts.to_vec(), of };
            write_json(&folder.join(RECORD_FILE), &record)
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_was_kept_is_read_as_long_as_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open_or_create(folder.path(), None).unwrap();
        assert!(library.router_record::<String>("r").unwrap().is_none() && library.router_names().unwrap().is_empty());
        let gone = ExpertWeights { name: "gone".into(), sha256: "00".into() };
        library.put_router("r", std::slice::from_ref(&gone), &"rows", b"one").unwrap();
        let before = library.router_sha256("r").unwrap();
        library.put_router("r", &[gone], &"rows", b"two").unwrap();
        assert_ne!(library.router_sha256("r").unwrap(), before);
        let record = library.router_record::<String>("r").unwrap().unwrap();
        assert_eq!((record.of.as_str(), library.router_state("r", &record).unwrap().as_slice()), ("rows", &b"two"[..]));
        assert!(library.changed_expert(&record.experts).unwrap().unwrap().contains("`gone`"));
        let state = library.router_folder("r").unwrap().join(STATE_FILE);
        fs::write(&state, "other").unwrap();
        let error = library.router_state("r", &record).unwrap_err().to_string();
        assert!(error.contains("router.safetensors") && error.contains("changed"), "{error}");
        fs::remove_file(&state).unwrap();
        fs::create_dir(&state).unwrap();
        assert!(library.router_state("r", &record).is_err());
        assert_eq!(library.router_names().unwrap(), ["r"]);
    }
}
