//! Ministral 3: Mistral's layers with rotary frequencies scaled by Yarn. Beyond the length of the pretraining its queries are
//! multiplied by a factor of their position.

use crate::architecture::base_config::{Architecture, BaseConfig, QueryScale, Scales};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::rope_config::RopeConfig;
use crate::architecture::{llama, mistral};
use crate::error::Result;
use serde_json::json;

/// `model_type: ministral3`.
pub(crate) static MINISTRAL3: Architecture =
    Architecture { model_type: "ministral3", descriptor: llama::DESCRIPTOR, gguf: None, read };

/// Reads the keys of Ministral3Config.
pub(crate) fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({
        "head_dim": 128,
        "num_key_value_heads": 8,
        "max_position_embeddings": 262_144,
        "rms_norm_eps": 1e-5,
    }));
    let has_rope = json.nested("rope_parameters")?.is_some() || !json.nested_or_empty("rope_scaling")?.is_empty();
    let json = if has_rope { json } else { with_default_rope(json) };
    let config = mistral::read_without_biases(&json)?.with_window(json.count("sliding_window")?);
    let scales = Scales { query_scale: query_scale(&json, config.max_positions)?, ..config.scales };
    Ok(BaseConfig { scales, ..config })
}

fn with_default_rope(json: ConfigKeys) -> ConfigKeys {
    let rope = json!({
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16_384,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    });
    json.with_value("rope_parameters", rope)
}

/// The growth of queries, unless it is zero.
fn query_scale(json: &ConfigKeys, positions: usize) -> Result<Option<QueryScale>> {
    let rope = RopeConfig::parameters(json)?;
    let Some(beta) = rope.get("llama_4_scaling_beta").filter(|beta| beta.as_f64() != Some(0.0)) else {
        return Ok(None);
    };
    let Some(beta) = beta.as_f64().filter(|beta| beta.is_finite()) else {
        return Err(json.error(format!("key `llama_4_scaling_beta` is {beta}, expected a number")));
    };
    Ok(Some(QueryScale { beta, original: rope.number("original_max_position_embeddings", positions as f64)? }))
}
