//! Ministral 3: Mistral's layers with rotary frequencies scaled by Yarn. Beyond the length of the pretraining its queries are
//! multiplied with a factor of their position, as in Llama 4; up to that length the factor is one, and no longer rows are
//! taken.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::llama;
use crate::error::Result;
use serde_json::{Value, json};

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
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16_384,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    }));
    let mut config = llama::read(&json)?.with_window(json.count("sliding_window")?);
    let rope = json.nested_or_empty("rope_parameters");
    let grows = rope.get("llama_4_scaling_beta").and_then(Value::as_f64).is_some_and(|beta| beta != 0.0);
    if let Some(original) = rope.count("original_max_position_embeddings")?.filter(|_| grows) {
        if config.max_positions > original {
            config.warnings.push(json.text_of(&format!(
                "key `llama_4_scaling_beta` scales queries from position {original} on, which lorakit does not: rows of at \
                 most {original} tokens are taken"
            )));
        }
        config.max_positions = config.max_positions.min(original);
    }
    Ok(config)
}
