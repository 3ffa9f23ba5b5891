//! expert.json: how an expert came about.

use serde::{Deserialize, Serialize};
use serde_json::Value;

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
