//! Gemma 2: norms before and after attention and MLP, whose weights are added to one; scaled embeddings; soft caps of
//! scores and logits; a window in every other layer.

use crate::architecture::base_config::{Architecture, ArchitectureKeys, AttentionKind, BaseConfig, Scales};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{BlockDescriptor, BranchNorms, Descriptor};
use crate::architecture::gguf::gguf_keys::GgufKeys;
use crate::architecture::gguf::gguf_mapping::GgufMapping;
use crate::architecture::rope_config::RotaryFactor;
use crate::architecture::{layer_types, llama};
use crate::error::Result;
use crate::layer::activation::Activation;
use crate::layer::norm::NormKind;
use serde_json::{Map, Value, json};

/// `model_type: gemma2`.
pub(crate) static GEMMA2: Architecture =
    Architecture { model_type: "gemma2", descriptor: DESCRIPTOR, gguf: Some(GGUF), read };

const GGUF: GgufMapping =
    GgufMapping { architecture: "gemma2", class: "Gemma2ForCausalLM", interleaved: false, add_keys };

/// The layers of the models that scale scores by the width of a head in the residual stream, not by that of a head.
const LAYERS_OF_27B: usize = 46;

/// Gemma 2's layers, which Gemma 3 extends.
pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    family: "Gemma2",
    norm: NormKind::RmsPlusOne,
    block: BlockDescriptor::Sequential {
        attention: BranchNorms { before: Some("input_layernorm"), after: Some("post_attention_layernorm") },
        mlp: BranchNorms { before: Some("pre_feedforward_layernorm"), after: Some("post_feedforward_layernorm") },
    },
    activation: Activation::GeGlu,
    ..llama::DESCRIPTOR
};

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "tie_word_embeddings": true,
    }));
    let caps = [
        json.number_or_null("attn_logit_softcapping", Some(50.0))?,
        json.number_or_null("final_logit_softcapping", Some(30.0))?,
    ];
    let config = read_gemma(&json, DESCRIPTOR, caps)?;
    let local = layer_types::local_layers(&json, config.layers, |layer| layer.is_multiple_of(2))?;
    let kind = AttentionKind { window: json.count("sliding_window")?, ..config.attention[0].clone() };
    Ok(config.with_local_layers(&local, &kind))
}

/// Reads the keys that Gemma 2 and 3 share, with the soft caps of scores and logits.
pub(crate) fn read_gemma(
    json: &ConfigKeys,
    descriptor: Descriptor,
    [attention_soft_cap, logit_soft_cap]: [Option<f64>; 2],
) -> Result<BaseConfig> {
    json.expect_text("hidden_activation", "gelu_pytorch_tanh")?;
    if json.get("use_bidirectional_attention").is_some_and(|value| value != false) {
        return Err(json.error("key `use_bidirectional_attention` is set; lorakit has causal attention only"));
    }
    let config = BaseConfig::from_json(
        json,
        ArchitectureKeys {
            descriptor: descriptor.with_biases(json.flag("attention_bias", false)?, false),
            head_dim: json.count("head_dim")?,
            epsilon: json.number("rms_norm_eps", 1e-6)?,
            rotary_factor: RotaryFactor::Whole,
        },
    )?;
    let scales = Scales {
        embedding: (config.hidden as f64).sqrt(),
        attention: Some(1.0 / json.number("query_pre_attn_scalar", 256.0)?.sqrt()),
        attention_soft_cap,
        logit_soft_cap,
        ..Scales::default()
    };
    Ok(BaseConfig { scales, ..config })
}

fn add_keys(keys: &GgufKeys, json: &mut Map<String, Value>) -> Result<()> {
    add_gemma_keys(keys, json, LAYERS_OF_27B)?;
    for cap in ["attn_logit_softcapping", "final_logit_softcapping"] {
        json.insert(cap.to_owned(), json!(keys.number(cap)?));
    }
    json.insert(
        "sliding_window".to_owned(),
        json!(keys.count("attention.sliding_window")?.filter(|&window| window > 0)),
    );
    Ok(())
}

/// Adds the keys that Gemma 2 and 3 share. Files do not say how scores are scaled; as in llama.cpp, a model of so many
/// layers is the one that differs.
pub(crate) fn add_gemma_keys(keys: &GgufKeys, json: &mut Map<String, Value>, layers_of_27b: usize) -> Result<()> {
    keys.ensure_rotates_whole_heads()?;
    json.insert("hidden_activation".to_owned(), "gelu_pytorch_tanh".into());
    let own =
        || -> Result<usize> { Ok(keys.required("embedding_length")? / keys.required("attention.head_count")?.max(1)) };
    let scalar = match keys.number("attention.scale")?.filter(|&scale| scale > 0.0) {
        Some(scale) => json!(scale.powi(-2)),
        None if keys.required("block_count")? == layers_of_27b => json!(own()?),
        None => json!(json["head_dim"]),
    };
    json.insert("query_pre_attn_scalar".to_owned(), scalar);
    Ok(())
}
