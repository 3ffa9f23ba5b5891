//! Llama 1 to 3: `h += o(attention(qkv(norm h)))`, `h += down(silu(gate(norm h)) * up(norm h))`.

use crate::architecture::base_config::{Architecture, ArchitectureKeys, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{
    BlockDescriptor, BranchNorms, Descriptor, Features, ProjectionDescriptor, SiteDescriptor,
};
use crate::architecture::gguf::gguf_keys::GgufKeys;
use crate::architecture::gguf::gguf_mapping::GgufMapping;
use crate::architecture::rope_config::RotaryFactor;
use crate::error::Result;
use crate::layer::activation::Activation;
use crate::layer::norm::NormKind;
use serde_json::{Map, Value, json};

/// `model_type: llama`.
pub(crate) static LLAMA: Architecture =
    Architecture { model_type: "llama", descriptor: DESCRIPTOR, gguf: Some(GGUF), read };

const GGUF: GgufMapping = GgufMapping { architecture: "llama", class: "LlamaForCausalLM", interleaved: true, add_keys };

/// Llama's layers, which others share. Their family is `Mistral` in fingerprints, the name that libraries on disk hold.
pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    family: "Mistral",
    embedding: "model.embed_tokens",
    layers: "model.layers",
    final_norm: "model.norm",
    lm_head: "lm_head",
    unused: &[],
    lm_head_bias: false,
    norm: NormKind::Rms,
    block: BlockDescriptor::Sequential {
        attention: BranchNorms::before("input_layernorm"),
        mlp: BranchNorms::before("post_attention_layernorm"),
    },
    qk_norm: None,
    activation: Activation::SwiGlu,
    attention_input: SiteDescriptor {
        name: "qkv",
        projections: &[
            ProjectionDescriptor { module: "self_attn.q_proj", outputs: &[Features::Queries] },
            ProjectionDescriptor { module: "self_attn.k_proj", outputs: &[Features::Keys] },
            ProjectionDescriptor { module: "self_attn.v_proj", outputs: &[Features::Values] },
        ],
        bias: false,
    },
    attention_output: SiteDescriptor {
        name: "o",
        projections: &[ProjectionDescriptor { module: "self_attn.o_proj", outputs: &[Features::Hidden] }],
        bias: false,
    },
    mlp_input: SiteDescriptor {
        name: "gate_up",
        projections: &[
            ProjectionDescriptor { module: "mlp.gate_proj", outputs: &[Features::Inner] },
            ProjectionDescriptor { module: "mlp.up_proj", outputs: &[Features::Inner] },
        ],
        bias: false,
    },
    mlp_output: SiteDescriptor {
        name: "down",
        projections: &[ProjectionDescriptor { module: "mlp.down_proj", outputs: &[Features::Hidden] }],
        bias: false,
    },
    encoder: None,
};

/// Reads the keys of LlamaConfig, which MistralConfig shares.
pub(crate) fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    json.expect_silu()?;
    BaseConfig::from_json(
        json,
        ArchitectureKeys {
            descriptor: DESCRIPTOR.with_biases(json.flag("attention_bias", false)?, json.flag("mlp_bias", false)?),
            head_dim: json.count("head_dim")?,
            epsilon: json.number("rms_norm_eps", 1e-6)?,
            rotary_factor: RotaryFactor::Whole,
        },
    )
}

/// Mistral's files are of this architecture too; with a window only Mistral's config has it. With biases of q, k and v and
/// of nothing else the layers are those of Qwen 2.
fn add_keys(keys: &GgufKeys, json: &mut Map<String, Value>) -> Result<()> {
    keys.ensure_rotates_whole_heads()?;
    json.insert("hidden_act".to_owned(), "silu".into());
    if let Some(window) = keys.count("attention.sliding_window")?.filter(|&window| window > 0) {
        json.insert("model_type".to_owned(), "mistral".into());
        json.insert("architectures".to_owned(), json!(["MistralForCausalLM"]));
        json.insert("sliding_window".to_owned(), window.into());
    } else if keys.has_tensor("blk.0.attn_q.bias")
        && !["blk.0.attn_output.bias", "blk.0.ffn_up.bias"].iter().any(|bias| keys.has_tensor(bias))
    {
        json.insert("model_type".to_owned(), "qwen2".into());
        json.insert("architectures".to_owned(), json!(["Qwen2ForCausalLM"]));
    }
    Ok(())
}
