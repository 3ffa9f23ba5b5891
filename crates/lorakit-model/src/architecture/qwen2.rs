//! Qwen 2 and 2.5: Llama's layers with biases on q, k and v, and a window in some layers.

use crate::architecture::base_config::{Architecture, AttentionKind, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{Descriptor, SiteDescriptor};
use crate::architecture::gguf::gguf_keys::GgufKeys;
use crate::architecture::gguf::gguf_mapping::GgufMapping;
use crate::architecture::{layer_types, llama};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// `model_type: qwen2`.
pub(crate) static QWEN2: Architecture =
    Architecture { model_type: "qwen2", descriptor: DESCRIPTOR, gguf: Some(GGUF), read };

const GGUF: GgufMapping =
    GgufMapping { architecture: "qwen2", class: "Qwen2ForCausalLM", interleaved: false, add_keys };

const DESCRIPTOR: Descriptor = Descriptor {
    attention_input: SiteDescriptor { bias: true, ..llama::DESCRIPTOR.attention_input },
    ..llama::DESCRIPTOR
};

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({ "num_key_value_heads": 32, "max_position_embeddings": 32_768 }));
    let config = BaseConfig { descriptor: DESCRIPTOR, ..llama::read(&json)? };
    with_windows(&json, config)
}

/// The windows of Qwen's configs: where `use_sliding_window` says so, in the layers from `max_window_layers` on, unless
/// `layer_types` names others.
pub(crate) fn with_windows(json: &ConfigKeys, config: BaseConfig) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({ "sliding_window": 4096, "max_window_layers": 28 }));
    if !json.flag("use_sliding_window", false)? {
        return Ok(config);
    }
    let first = json.whole_number("max_window_layers", 28)?;
    let local = layer_types::local_layers(&json, config.layers, |layer| layer as i64 >= first)?;
    let kind = AttentionKind { window: json.count("sliding_window")?, ..config.attention[0].clone() };
    Ok(config.with_local_layers(&local, &kind))
}

/// Adds the keys that Qwen 2 and 3 share.
pub(crate) fn add_keys(keys: &GgufKeys, json: &mut Map<String, Value>) -> Result<()> {
    keys.ensure_rotates_whole_heads()?;
    json.insert("hidden_act".to_owned(), "silu".into());
    Ok(())
}
