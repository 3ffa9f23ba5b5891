//! Qwen 3, dense: Llama's layers with a norm of each head of q and k, and a window in some layers.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{Descriptor, QkNormDescriptor, QkNormRows};
use crate::architecture::gguf::gguf_mapping::GgufMapping;
use crate::architecture::{llama, qwen2};
use crate::error::Result;
use serde_json::json;

/// `model_type: qwen3`.
pub(crate) static QWEN3: Architecture =
    Architecture { model_type: "qwen3", descriptor: DESCRIPTOR, gguf: Some(GGUF), read };

const GGUF: GgufMapping =
    GgufMapping { architecture: "qwen3", class: "Qwen3ForCausalLM", interleaved: false, add_keys: qwen2::add_keys };

const DESCRIPTOR: Descriptor = Descriptor {
    family: "Qwen3",
    qk_norm: Some(QkNormDescriptor { queries: "self_attn.q_norm", keys: "self_attn.k_norm", rows: QkNormRows::Heads }),
    ..llama::DESCRIPTOR
};

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({
        "head_dim": 128, "num_key_value_heads": 32, "max_position_embeddings": 32_768,
    }));
    let descriptor = DESCRIPTOR.with_biases(json.flag("attention_bias", false)?, false);
    qwen2::with_windows(&json, BaseConfig { descriptor, ..llama::read(&json)? })
}
