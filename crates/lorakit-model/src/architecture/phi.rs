//! Phi-1, 1.5 and 2, whose block is parallel: `x = norm h`, `h += dense(attention(qkv x)) + fc2(gelu(fc1 x))`.
//!
//! `qkv` and `fc1` read the same input, yet are two sites: attention and MLP each consume one of them, and side by side in
//! one tensor each would have to pad its gradient to the other's width.

use crate::architecture::base_config::{Architecture, ArchitectureKeys, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{BlockDescriptor, Descriptor, Features, ProjectionDescriptor, SiteDescriptor};
use crate::architecture::rope_config::RotaryFactor;
use crate::error::Result;
use crate::layer::activation::Activation;
use crate::layer::norm::NormKind;

/// `model_type: phi`.
pub(crate) static PHI: Architecture = Architecture { model_type: "phi", descriptor: DESCRIPTOR, gguf: None, read };

const DESCRIPTOR: Descriptor = Descriptor {
    family: "Phi",
    embedding: "model.embed_tokens",
    layers: "model.layers",
    final_norm: "model.final_layernorm",
    lm_head: "lm_head",
    unused: &[],
    lm_head_bias: true,
    norm: NormKind::Layer,
    block: BlockDescriptor::Parallel { norm: "input_layernorm" },
    qk_norm: None,
    activation: Activation::GeluNew,
    attention_input: SiteDescriptor {
        name: "qkv",
        projections: &[
            ProjectionDescriptor { module: "self_attn.q_proj", outputs: &[Features::Queries] },
            ProjectionDescriptor { module: "self_attn.k_proj", outputs: &[Features::Keys] },
            ProjectionDescriptor { module: "self_attn.v_proj", outputs: &[Features::Values] },
        ],
        bias: true,
    },
    attention_output: SiteDescriptor {
        name: "dense",
        projections: &[ProjectionDescriptor { module: "self_attn.dense", outputs: &[Features::Hidden] }],
        bias: true,
    },
    mlp_input: SiteDescriptor {
        name: "fc1",
        projections: &[ProjectionDescriptor { module: "mlp.fc1", outputs: &[Features::Inner] }],
        bias: true,
    },
    mlp_output: SiteDescriptor {
        name: "fc2",
        projections: &[ProjectionDescriptor { module: "mlp.fc2", outputs: &[Features::Hidden] }],
        bias: true,
    },
    encoder: None,
};

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    json.expect_text("hidden_act", "gelu_new")?;
    if json.flag("qk_layernorm", false)? {
        return Err(json.error("key `qk_layernorm` is true, which is not supported"));
    }
    BaseConfig::from_json(
        json,
        ArchitectureKeys {
            descriptor: DESCRIPTOR,
            head_dim: None,
            epsilon: json.number("layer_norm_eps", 1e-5)?,
            rotary_factor: RotaryFactor::Partial(0.5),
        },
    )
}
