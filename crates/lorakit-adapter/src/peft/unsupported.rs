//! The keys of an adapter_config.json that are not supported.

use serde::Serialize;
use thiserror::Error;

/// A key that is not supported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnsupportedKey {
    /// The key.
    pub key: String,
    /// What was found, what was expected, and what to do.
    pub reason: String,
}

/// A configuration that describes something else than a plain LoRA, with every reason at once.
#[derive(Clone, Debug, Error)]
#[error("not a plain LoRA configuration: {}", join_reasons(.keys))]
pub struct UnsupportedConfig {
    /// The keys, at least one.
    pub keys: Vec<UnsupportedKey>,
}

fn join_reasons(keys: &[UnsupportedKey]) -> String {
    let reasons: Vec<_> = keys.iter().map(|UnsupportedKey { key, reason }| format!("{key}: {reason}")).collect();
    reasons.join("; ")
}

impl UnsupportedConfig {
    /// A refusal of one key.
    pub(crate) fn of(key: &str, reason: impl Into<String>) -> Self {
        Self { keys: vec![UnsupportedKey { key: key.to_owned(), reason: reason.into() }] }
    }
}
