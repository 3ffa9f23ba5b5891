//! SmolLM 3: Llama's layers, of which every fourth does not encode positions; these may have a sliding window.

use crate::architecture::base_config::{Architecture, AttentionKind, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::{layer_types, llama};
use crate::error::Result;
use serde_json::{Value, json};

/// `model_type: smollm3`.
pub(crate) static SMOLLM3: Architecture =
    Architecture { model_type: "smollm3", descriptor: llama::DESCRIPTOR, gguf: None, read };

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rope_theta": 2_000_000.0,
        "tie_word_embeddings": true,
    }));
    let config = llama::read(&json)?;
    let every = json.count("no_rope_layer_interval")?.unwrap_or(4);
    let without_rope: Vec<bool> = match json.of_first_layers("no_rope_layers", config.layers)? {
        // Despite its name, 1 says that a layer has rope.
        Some(list) => list.iter().map(|rope| rope == &Value::from(0)).collect(),
        None => (0..config.layers).map(|layer| (layer + 1).is_multiple_of(every)).collect(),
    };
    let window = json.count("sliding_window")?;
    let windowed = json.flag("use_sliding_window", false)? && window.is_some();
    let is_local = layer_types::local_layers(&json, config.layers, |layer| windowed && without_rope[layer])?;
    let AttentionKind { rope, .. } = &config.attention[0];
    let kind = |(&without_rope, is_local)| AttentionKind {
        window: if is_local { window } else { None },
        rope: if without_rope { None } else { rope.clone() },
    };
    let kinds: Vec<AttentionKind> = without_rope.iter().zip(is_local).map(kind).collect();
    Ok(config.with_layer_kinds(kinds.iter()))
}
