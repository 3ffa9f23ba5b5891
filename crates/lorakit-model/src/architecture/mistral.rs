//! Mistral 7B: Llama's layers with a sliding window.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::llama;
use crate::error::Result;

/// `model_type: mistral`.
pub(crate) static MISTRAL: Architecture =
    Architecture { model_type: "mistral", descriptor: llama::DESCRIPTOR, gguf: None, read };

/// MistralConfig's window where the file does not mention one; null means none.
const DEFAULT_WINDOW: usize = 4096;

/// Reads the keys of MistralConfig.
pub(crate) fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let window = if json.has_key("sliding_window") { json.count("sliding_window")? } else { Some(DEFAULT_WINDOW) };
    Ok(llama::read(json)?.with_window(window))
}
