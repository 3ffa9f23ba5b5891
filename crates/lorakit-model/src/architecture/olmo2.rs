//! OLMo 2: norms only after attention and MLP, and norms of all heads of q and of k together.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{BlockDescriptor, BranchNorms, Descriptor, QkNormDescriptor, QkNormRows};
use crate::architecture::llama;
use crate::error::Result;
use serde_json::json;

/// `model_type: olmo2`.
pub(crate) static OLMO2: Architecture = Architecture { model_type: "olmo2", descriptor: DESCRIPTOR, gguf: None, read };

/// OLMo 2's layers, which OLMo 3 shares.
pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    family: "Olmo2",
    block: BlockDescriptor::Sequential {
        attention: BranchNorms { before: None, after: Some("post_attention_layernorm") },
        mlp: BranchNorms { before: None, after: Some("post_feedforward_layernorm") },
    },
    qk_norm: Some(QkNormDescriptor { queries: "self_attn.q_norm", keys: "self_attn.k_norm", rows: QkNormRows::Tokens }),
    ..llama::DESCRIPTOR
};

/// Reads the keys of Olmo2Config.
pub(crate) fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({ "rms_norm_eps": 1e-5 }));
    let descriptor = DESCRIPTOR.with_biases(json.flag("attention_bias", false)?, false);
    Ok(BaseConfig { descriptor, ..llama::read(&json)? })
}
