//! Fitted routers of a library: `routers/NAME/` holds router.safetensors, the state, and router.json, a record of what it
//! was fitted on.

use std::fs;
use std::path::PathBuf;

use lorakit_format::atomic;
use lorakit_format::hash::{sha256, sha256_of_file};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{AdapterError, Result, Within};
use crate::library::json_file::{read_json_if_exists, write_json};
use crate::library::library_layout::{ROUTERS, subfolder, subfolder_names};
use crate::library::library_store::Library;

const ROUTER_RECORD_FILE: &str = "router.json";
const STATE_FILE: &str = "router.safetensors";

/// An expert and the hash of its weights at some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertHash {
    /// The expert's name.
    pub name: String,
    /// The SHA-256 of its weights.
    pub sha256: String,
}

/// router.json: what a router was fitted on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RouterRecord<T> {
    /// The SHA-256 of router.safetensors.
    pub state_sha256: String,
    /// The experts that the state was fitted for.
    pub experts: Vec<ExpertHash>,
    /// What else it was fitted on: each kind of router has its own record.
    #[serde(rename = "of")]
    pub origin: T,
}

impl Library {
    /// The folder of fitted routers; it need not exist.
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
    /// If the name is not a valid one, or the folder is a link.
    pub fn router_folder(&self, name: &str) -> Result<PathBuf> {
        subfolder(self.root(), ROUTERS, name)
    }

    /// What the state of the router `name` was fitted on; `None` if there is none.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn router_record<T: DeserializeOwned>(&self, name: &str) -> Result<Option<RouterRecord<T>>> {
        read_json_if_exists(&self.router_folder(name)?.join(ROUTER_RECORD_FILE))
    }

    /// The SHA-256 of the record of the router `name`, which holds those of its state and experts; `None` if there is
    /// none.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn router_sha256(&self, name: &str) -> Result<Option<String>> {
        let file = self.router_folder(name)?.join(ROUTER_RECORD_FILE);
        if file.exists() { Ok(Some(sha256_of_file(&file)?)) } else { Ok(None) }
    }

    /// The state of the router `name`, a safetensors file, checked against its record.
    ///
    /// # Errors
    /// If it cannot be read, or is not the one that the record belongs to.
    pub fn router_state<T>(&self, name: &str, record: &RouterRecord<T>) -> Result<Vec<u8>> {
        let file = self.router_folder(name)?.join(STATE_FILE);
        let place = file.display();
        // A device would have no end.
        if !file.is_file() {
            return Err(AdapterError::RouterState(format!(
                "{place}: no such file; expected the state that {ROUTER_RECORD_FILE} belongs to"
            )));
        }
        let bytes = fs::read(&file).within_file(&file)?;
        let (found, recorded) = (sha256(&bytes), &record.state_sha256);
        if found != *recorded {
            return Err(AdapterError::RouterState(format!(
                "{place}: has the sha256 {found}, but {ROUTER_RECORD_FILE} records {recorded}: the file was changed; remove the \
                 folder, and the router is fitted again"
            )));
        }
        Ok(bytes)
    }

    /// The hashes of experts' weights as they are now.
    ///
    /// # Errors
    /// If there is no such expert, or its weights cannot be read.
    pub fn expert_hashes(&self, names: &[String]) -> Result<Vec<ExpertHash>> {
        let of = |name: &String| Ok(ExpertHash { name: name.clone(), sha256: self.weights_sha256(name)? });
        names.iter().map(of).collect()
    }

    /// What happened to the first of `experts` that has changed since; `None` if all are the same.
    ///
    /// # Errors
    /// If weights cannot be read.
    pub fn changed_expert(&self, experts: &[ExpertHash]) -> Result<Option<String>> {
        for ExpertHash { name, sha256 } in experts {
            if !self.contains(name) {
                return Ok(Some(format!("the expert `{name}` is no longer in the library")));
            }
            let found = self.weights_sha256(name)?;
            if found != *sha256 {
                return Ok(Some(format!(
                    "the weights of the expert `{name}` have the sha256 {found}, but had {sha256}"
                )));
            }
        }
        Ok(None)
    }

    /// Stores the state of a router, replacing one of that name. It appears whole.
    ///
    /// # Errors
    /// If the name is not a valid one, or the folder cannot be written.
    pub fn put_router<T: Serialize>(&self, name: &str, experts: &[ExpertHash], origin: &T, state: &[u8]) -> Result<()> {
        let place = self.router_folder(name)?;
        let routers = self.routers_folder();
        fs::create_dir_all(&routers).within_file(&routers)?;
        atomic::replace_folder(&place, |folder| {
            atomic::write_file(&folder.join(STATE_FILE), state)?;
            let record = RouterRecord { state_sha256: sha256(state), experts: experts.to_vec(), origin };
            write_json(&folder.join(ROUTER_RECORD_FILE), &record)?;
            self.ensure_held()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_stored_router_is_read_as_long_as_it_is_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::open_or_create(folder.path(), None).unwrap();
        assert!(library.router_record::<String>("r").unwrap().is_none() && library.router_names().unwrap().is_empty());
        let gone = ExpertHash { name: "gone".into(), sha256: "00".into() };
        library.put_router("r", std::slice::from_ref(&gone), &"rows", b"one").unwrap();
        let before = library.router_sha256("r").unwrap();
        library.put_router("r", &[gone], &"rows", b"two").unwrap();
        assert_ne!(library.router_sha256("r").unwrap(), before);
        let record = library.router_record::<String>("r").unwrap().unwrap();
        assert_eq!(
            (record.origin.as_str(), library.router_state("r", &record).unwrap().as_slice()),
            ("rows", &b"two"[..])
        );
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
