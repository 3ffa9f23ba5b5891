//! Which base a library or an expert belongs to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{AdapterError, Result};

/// Which base an expert or a library belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseIdentity {
    /// The name that it was opened with, for information; it is not compared.
    pub name: String,
    /// Its architecture, as config.json names it.
    pub architecture: String,
    /// Its dimensions, by their names in config.json.
    pub dimensions: BTreeMap<String, u64>,
    /// The hash of its configuration, headers and sampled weights.
    pub fingerprint: String,
}

impl BaseIdentity {
    /// Checks that `other` is the same base, whatever its name.
    ///
    /// # Errors
    /// If architecture, dimensions or fingerprint differ; the error says which, with both values.
    pub fn ensure_same(&self, other: &Self) -> Result<()> {
        let (own_name, other_name) = (&self.name, &other.name);
        if self.architecture != other.architecture {
            return Err(AdapterError::LibraryBase(format!(
                "belongs to the base `{own_name}` ({}), not to `{other_name}` ({})",
                self.architecture, other.architecture
            )));
        }
        for key in self.dimensions.keys().chain(other.dimensions.keys()) {
            let [own, given] = [self, other].map(|base| base.dimensions.get(key));
            let show = |value: Option<&u64>| value.map_or_else(|| "none".to_owned(), u64::to_string);
            if own != given {
                return Err(AdapterError::LibraryBase(format!(
                    "belongs to the base `{own_name}` with {key} {}, but `{other_name}` has {}",
                    show(own),
                    show(given)
                )));
            }
        }
        if self.fingerprint != other.fingerprint {
            return Err(AdapterError::LibraryBase(format!(
                "belongs to the base `{own_name}` with the fingerprint {}, but `{other_name}` has {}: other weights of the \
                 same shapes",
                self.fingerprint, other.fingerprint
            )));
        }
        Ok(())
    }
}
