//! Gemma 3's text model: Gemma 2's layers with a norm of each head of q and k, and local layers that rotate by other
//! frequencies than global ones.

use crate::architecture::base_config::{Architecture, AttentionKind, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{Descriptor, QkNormDescriptor, QkNormRows};
use crate::architecture::gguf::gguf_keys::GgufKeys;
use crate::architecture::gguf::gguf_mapping::GgufMapping;
use crate::architecture::{gemma2, layer_types};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// `model_type: gemma3_text`.
pub(crate) static GEMMA3_TEXT: Architecture =
    Architecture { model_type: "gemma3_text", descriptor: DESCRIPTOR, gguf: Some(GGUF), read };

const GGUF: GgufMapping =
    GgufMapping { architecture: "gemma3", class: "Gemma3ForCausalLM", interleaved: false, add_keys };

/// The layers of the model that scales scores by the width of a head in the residual stream, not by that of a head.
const LAYERS_OF_27B: usize = 62;

/// The base of the frequencies of local layers, where a file does not say.
const LOCAL_THETA: f64 = 10_000.0;

/// Gemma 3's layers.
pub(crate) const DESCRIPTOR: Descriptor = Descriptor {
    family: "Gemma3",
    qk_norm: Some(QkNormDescriptor { queries: "self_attn.q_norm", keys: "self_attn.k_norm", rows: QkNormRows::Heads }),
    ..gemma2::DESCRIPTOR
};

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    read_text(json, DESCRIPTOR)
}

/// Reads the config of a text model. A multimodal folder leaves out what is as in the first such model.
pub(crate) fn read_text(json: &ConfigKeys, descriptor: Descriptor) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({
        "vocab_size": 262_208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "tie_word_embeddings": true,
    }));
    let caps = [None, json.number_or_null("final_logit_softcapping", None)?];
    let thetas = [json.number("rope_theta", 1_000_000.0)?, json.number("rope_local_base_freq", LOCAL_THETA)?];
    let [global, local] = layer_types::ropes(&json, thetas, json.required("head_dim")?)?;
    let mut config = gemma2::read_gemma(&json.clone().without(&["rope_parameters", "rope_scaling"]), descriptor, caps)?;
    config.warnings.extend(score_cap_warning(&json));
    config.warnings.extend(layer_types::scaling_warnings(&json)?);
    config.attention = vec![AttentionKind { window: None, rope: Some(global) }];
    let every = json.count("sliding_window_pattern")?.unwrap_or(6);
    let is_local = layer_types::local_layers(&json, config.layers, |layer| !(layer + 1).is_multiple_of(every))?;
    let kind = AttentionKind { window: json.count("sliding_window")?, rope: Some(local) };
    Ok(config.with_local_layers(&is_local, &kind))
}

/// What to say of a soft cap of scores: norms of q and k took its place, and transformers reads the key without using it.
fn score_cap_warning(json: &ConfigKeys) -> Option<String> {
    json.get("attn_logit_softcapping").map(|cap| {
        json.message(&format!(
            "key `attn_logit_softcapping` is {cap}; Gemma 3 does not cap its scores, as in transformers"
        ))
    })
}

fn add_keys(keys: &GgufKeys, json: &mut Map<String, Value>) -> Result<()> {
    gemma2::add_gemma_keys(keys, json, LAYERS_OF_27B)?;
    json.insert("final_logit_softcapping".to_owned(), json!(keys.number("final_logit_softcapping")?));
    json.insert("rope_local_base_freq".to_owned(), json!(keys.number("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA)));
    // Without a window, every layer is global.
    let window = keys.count("attention.sliding_window")?.filter(|&window| window > 0);
    json.insert("sliding_window".to_owned(), json!(window.unwrap_or(1)));
    let is_local = keys.list("attention.sliding_window_pattern");
    if let Some(layers) = is_local.map(|list| list.iter().map(|local| local.as_bool() == Some(true))) {
        let kind = |local| if local { "sliding_attention" } else { "full_attention" };
        json.insert("layer_types".to_owned(), layers.map(kind).collect());
        return Ok(());
    }
    let every = keys.count("attention.sliding_window_pattern")?.unwrap_or(if window.is_some() { 6 } else { 1 });
    json.insert("sliding_window_pattern".to_owned(), json!(every));
    Ok(())
}
