//! Which base a library or an expert belongs to.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// Which base an expert or a library belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseIdentity {
    /// The name by which it was opened; for people, not compared.
    pub name: String,
    /// Its architecture, as config.json names it.
    pub architecture: String,
    /// Its dimensions, by the names that config.json gives them.
    pub dimensions: BTreeMap<String, u64>,
    /// The hash of its configuration, headers and sampled weights.
    pub fingerprint: String,
}

impl BaseIdentity {
    /// Verifies that `other` is the same base, whatever its name.
    ///
    /// # Errors
    /// If architecture, dimensions or fingerprint differ; the error says which, with both values.
    pub fn ensure_same(&self, other: &Self) -> Result<()> {
        ensure!(
            self.architecture == other.architecture,
            "belongs to the base `{}` ({}), not to `{}` ({})",
            self.name,
            self.architecture,
            other.name,
            other.architecture
        );
        for key in self.dimensions.keys().chain(other.dimensions.keys()) {
            let (own, given) = (self.dimensions.get(key), other.dimensions.get(key));
            let told = |value: Option<&u64>| value.map_or_else(|| "none".to_owned(), u64::to_string);
            ensure!(
                own == given,
                "belongs to the base `{}` with {key} {}, but `{}` has {}",
                self.name,
                told(own),
                other.name,
                told(given)
            );
        }
        ensure!(
            self.fingerprint == other.fingerprint,
            "belongs to the base `{}` with the fingerprint {}, but `{}` has {}: other weights in \
             the same shapes",
            self.name,
            self.fingerprint,
            other.name,
            other.fingerprint
        );
        Ok(())
    }
}
