//! OLMo 3: OLMo 2's layers, of which three in four have a window and unscaled rotary frequencies.

use crate::architecture::base_config::{Architecture, AttentionKind, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::{layer_types, olmo2};
use crate::error::Result;
use serde_json::json;

/// `model_type: olmo3`.
pub(crate) static OLMO3: Architecture =
    Architecture { model_type: "olmo3", descriptor: olmo2::DESCRIPTOR, gguf: None, read };

/// The base of the frequencies where a file does not say. A flat `rope_theta` is that of global layers, as in transformers.
const THETA: f64 = 500_000.0;

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({ "max_position_embeddings": 2048 }));
    let mut config = olmo2::read(&json.clone().without(&["rope_parameters", "rope_scaling"]))?;
    let [global, local] = layer_types::ropes(&json, [json.number("rope_theta", THETA)?, THETA], config.head_dim)?;
    config.warnings.extend(layer_types::scaling_warnings(&json)?);
    config.attention = vec![AttentionKind { window: None, rope: Some(global) }];
    let window = if json.has_key("sliding_window") { json.count("sliding_window")? } else { Some(4096) };
    let is_local = layer_types::local_layers(&json, config.layers, |layer| !(layer + 1).is_multiple_of(4))?;
    Ok(config.with_local_layers(&is_local, &AttentionKind { window, rope: Some(local) }))
}
