//! Mistral 7B: Llama's layers with a sliding window, and Ministral 8B, where some layers see all positions.

use crate::architecture::base_config::{Architecture, AttentionKind, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::{layer_types, llama};
use crate::error::Result;
use serde_json::json;

/// `model_type: mistral`.
pub(crate) static MISTRAL: Architecture =
    Architecture { model_type: "mistral", descriptor: llama::DESCRIPTOR, gguf: None, read };

/// `model_type: ministral`. transformers reads a Mistral with `layer_types` as one of these.
pub(crate) static MINISTRAL: Architecture =
    Architecture { model_type: "ministral", descriptor: llama::DESCRIPTOR, gguf: None, read };

/// Reads the keys of MistralConfig and MinistralConfig. Without `layer_types` all layers have the window; null means none.
pub(crate) fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
    }));
    let config = read_without_biases(&json)?;
    let local = layer_types::local_layers(&json, config.layers, |_| true)?;
    let kind = AttentionKind { window: json.count("sliding_window")?, ..config.attention[0].clone() };
    Ok(config.with_local_layers(&local, &kind))
}

/// Reads Llama's keys but those for biases, which no projection of Mistral's has.
pub(crate) fn read_without_biases(json: &ConfigKeys) -> Result<BaseConfig> {
    let config = llama::read(json)?;
    Ok(BaseConfig { descriptor: config.descriptor.with_biases(false, false), ..config })
}
