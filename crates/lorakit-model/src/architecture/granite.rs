//! Granite 3 to 4.1, dense: Llama's layers with multipliers of embeddings, scores, residuals and logits.

use crate::architecture::base_config::{Architecture, BaseConfig, Scales};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::llama;
use crate::error::Result;

/// `model_type: granite`.
pub(crate) static GRANITE: Architecture =
    Architecture { model_type: "granite", descriptor: llama::DESCRIPTOR, gguf: None, read };

/// Reads the keys of GraniteConfig.
pub(crate) fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let scales = Scales {
        embedding: json.number("embedding_multiplier", 1.0)?,
        residual: json.number("residual_multiplier", 1.0)?,
        logits: 1.0 / json.number("logits_scaling", 1.0)?,
        attention: Some(json.number("attention_multiplier", 1.0)?),
        ..Scales::default()
    };
    Ok(BaseConfig { scales, ..llama::read(json)? })
}
