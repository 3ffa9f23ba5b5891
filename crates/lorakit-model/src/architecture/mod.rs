//! What differs between base models: one file for each architecture, and one line in [`ARCHITECTURES`].
//!
//! A new architecture is a file with its [`Descriptor`] and the function that reads its `config.json`. Layers, training, memory
//! estimates and default targets read the descriptor; nothing else names an architecture.

pub(crate) mod base_config;
pub(crate) mod config_keys;
pub(crate) mod descriptor;
pub(crate) mod gemma2;
pub(crate) mod gemma3;
pub(crate) mod gemma3_text;
pub(crate) mod gguf;
pub(crate) mod granite;
pub(crate) mod granitemoehybrid;
mod layer_sites;
pub(crate) mod layer_types;
pub(crate) mod llama;
pub(crate) mod ministral3;
pub(crate) mod mistral;
pub(crate) mod mistral3;
mod multimodal;
pub(crate) mod olmo2;
pub(crate) mod olmo3;
pub(crate) mod phi;
pub(crate) mod phi3;
pub(crate) mod quantization_config;
pub(crate) mod qwen2;
pub(crate) mod qwen3;
pub(crate) mod registry;
pub(crate) mod rope_config;
pub(crate) mod smollm3;
pub(crate) mod t5;

pub use base_config::{Architecture, AttentionKind, BaseConfig, EncoderConfig, QueryScale, Scales};
pub use descriptor::{
    BlockDescriptor, BranchNorms, CrossAttentionDescriptor, Descriptor, EncoderDescriptor, Features,
    ProjectionDescriptor, QkNormDescriptor, QkNormRows, SiteDescriptor,
};
pub use gguf::gguf_config::gguf_config_json;
pub use quantization_config::QUANTIZATION_CONFIG;
pub use registry::{ARCHITECTURES, module_names};
pub use rope_config::{RopeConfig, RopeScaling};
