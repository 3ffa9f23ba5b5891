//! What a library knows of an expert beside its weights: its name, how it was trained, and on which
//! base.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The longest name of an expert, in bytes: file systems allow 255, and temporary names add a
/// prefix.
const NAME_LIMIT: usize = 200;

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

/// expert.json: how an expert came about.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertRecord {
    /// The tasks that it was trained on.
    pub tasks: Vec<TaskRecord>,
    /// The tasks that adapters had seen from which it started, or of which it was made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<TaskRecord>,
    /// The settings of its training.
    pub settings: Value,
    /// The SHA-256 of the settings; another one means other training.
    pub settings_sha256: String,
    /// The seed of its data order and dropout.
    pub seed: u64,
    /// The seed of the A that it started from, which experts share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_seed: Option<u64>,
    /// The losses of its training and validation.
    pub losses: Value,
    /// The number of target tokens that it was trained on.
    pub tokens: u64,
    /// The fingerprint of the base that it was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_fingerprint: Option<String>,
    /// The SHA-256 of its adapter_model.safetensors.
    pub sha256: String,
    /// The version of lorakit that made it.
    pub version: String,
}

/// A task that an expert was trained on, exactly enough to notice when it is another.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The task's name.
    pub name: String,
    /// Where its rows were read from.
    pub path: String,
    /// The SHA-256 of its rows.
    pub sha256: String,
    /// The seed that splits its rows.
    pub split_seed: u64,
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

/// Verifies that `name` can name an expert: it is one folder's name on any system, and no hidden
/// one.
///
/// # Errors
/// If it is empty, too long, starts with a dot, or holds a separator, a comma (which separates
/// names on the command line) or a control character.
pub fn ensure_expert_name(name: &str) -> Result<()> {
    let quoted: String = name.chars().take(60).collect();
    ensure!(!name.is_empty(), "an expert's name is empty; expected a folder's name");
    ensure!(
        name.len() <= NAME_LIMIT,
        "the expert's name {quoted:?}... has {} bytes; expected at most {NAME_LIMIT}",
        name.len()
    );
    if name.starts_with('.') {
        bail!("the expert's name {quoted:?} starts with a dot; expected a name that is not hidden");
    }
    if let Some(found) = name.chars().find(|found| matches!(found, '/' | '\\' | ',') || found.is_control()) {
        bail!(
            "the expert's name {quoted:?} holds {found:?}; expected a folder's name without \
             separators"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_folders_are_accepted_and_ways_out_of_the_library_refused() {
        for name in ["boolq", "cluster 3", "wiki_hop-2.0", "flan.v2..x", "ünï", "a=b"] {
            assert!(ensure_expert_name(name).is_ok(), "{name}");
        }
        for name in ["", ".", "..", "../x", "/etc", "a/b", "a\\b", ".hidden", "a,b", "a\0b", "a\nb", &"x".repeat(201)] {
            assert!(ensure_expert_name(name).is_err(), "{name:?}");
        }
    }
}
