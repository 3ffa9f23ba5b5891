//! expert.json: how an expert was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::library::opaque_record::OpaqueRecord;

/// How an expert or a model was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExpertRecord {
    /// The tasks that it was trained on.
    pub tasks: Vec<TaskRecord>,
    /// The tasks of the adapters that it started from or was made of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<TaskRecord>,
    /// The settings that determine its weights, in the form of whatever made it.
    pub settings: OpaqueRecord,
    /// The SHA-256 of the settings; another one means other weights.
    pub settings_sha256: String,
    /// The seed of its data order and dropout.
    pub seed: u64,
    /// The seed of the initial A, if it is the one that experts share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_seed: Option<u64>,
    /// The losses of its training or fit, in the form of whatever made it.
    pub losses: OpaqueRecord,
    /// The number of target tokens that it was trained on.
    pub tokens: u64,
    /// The fingerprint of the base that it was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_fingerprint: Option<String>,
    /// The form of that base's weights, as in [`crate::BaseIdentity::form`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_form: Option<String>,
    /// The SHA-256 of its adapter_model.safetensors.
    pub sha256: String,
    /// The version of lorakit that made it.
    pub version: String,
}

/// A task that an expert was trained on, in enough detail to tell when it has changed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The task's name.
    pub name: String,
    /// The file that its rows were read from.
    pub path: String,
    /// The SHA-256 of its rows.
    pub sha256: String,
    /// The seed of its split into training, validation and test rows.
    pub split_seed: u64,
    /// Hashes of the training rows, as `lorakit_format::hash_sketch` writes them; empty in records of earlier versions.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub train_rows: String,
    /// The standard columns that other columns of its file stand for, as `--columns` gave them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub columns: BTreeMap<String, String>,
    /// The SHA-256 of the chat template that its rows went through; None for rows that went through none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
}
