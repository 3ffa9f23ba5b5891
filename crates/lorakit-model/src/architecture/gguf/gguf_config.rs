//! The config.json of the Hugging Face folder that a GGUF file was made from.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::gguf::gguf_keys::GgufKeys;
use crate::architecture::gguf::gguf_mapping::GgufMapping;
use crate::architecture::gguf::gguf_rope::rope_scaling;
use crate::architecture::registry::ARCHITECTURES;
use crate::error::{ModelError, Result};
use lorakit_format::gguf::{GgufShards, GgufValue};
use serde_json::{Map, Value, json};

/// Token ids of config.json that a file holds as `tokenizer.ggml.KEY`.
const TOKEN_IDS: [&str; 3] = ["bos_token_id", "eos_token_id", "padding_token_id"];

impl BaseConfig {
    /// Reads the config of a model in GGUF: that of the Hugging Face folder it was made from, as far as the file says.
    ///
    /// # Errors
    /// If a key is missing or has an unexpected value, or the architecture is not supported.
    pub fn of_gguf(shards: &GgufShards) -> Result<Self> {
        let json = ConfigKeys::of(gguf_config_json(shards)?, &shards.first().path().display().to_string());
        Self::of_keys(&json)
    }
}

/// The config.json of the Hugging Face folder that a model in GGUF was made from, for weights in f32.
///
/// # Errors
/// As [`BaseConfig::of_gguf`].
pub fn gguf_config_json(shards: &GgufShards) -> Result<Value> {
    let keys = GgufKeys::new(shards)?;
    let (architecture, mapping) = architecture_of(&keys)?;
    let mut json = shared_keys(&keys)?;
    json.insert("model_type".to_owned(), architecture.model_type.into());
    json.insert("architectures".to_owned(), json!([mapping.class]));
    (mapping.add_keys)(&keys, &mut json)?;
    Ok(Value::Object(json))
}

/// The architecture of a file, with how its files are written.
pub(crate) fn architecture_of(keys: &GgufKeys) -> Result<(&'static Architecture, &'static GgufMapping)> {
    let known = ARCHITECTURES.iter().filter_map(|known| Some((*known, known.gguf.as_ref()?)));
    let name = keys.architecture();
    if let Some(found) = known.clone().find(|(_, mapping)| mapping.architecture == name) {
        return Ok(found);
    }
    let kind = keys.global("general.type").and_then(GgufValue::as_text).filter(|kind| *kind != "model");
    let kind = kind.map(|kind| format!(" (its `general.type` is `{kind}`)")).unwrap_or_default();
    let names: Vec<&str> = known.map(|(_, mapping)| mapping.architecture).collect();
    let names = names.join(", ");
    Err(ModelError::Config {
        file: keys.file(),
        reason: format!("key `general.architecture` is `{name}`{kind}; supported in GGUF are {names}"),
    })
}

/// The keys that all architectures share.
fn shared_keys(keys: &GgufKeys) -> Result<Map<String, Value>> {
    if let Some(experts) = keys.count("expert_count")?.filter(|&experts| experts > 0) {
        return Err(
            keys.error("expert_count", &format!("is {experts}; mixtures of experts within a base are not supported"))
        );
    }
    if keys.flag("attention.causal")? == Some(false) {
        return Err(keys.error("attention.causal", "is false; lorakit has causal attention only"));
    }
    let (hidden, heads) = (keys.required("embedding_length")?, keys.required("attention.head_count")?);
    let head_dim = head_dim(keys, hidden, heads)?;
    let theta = keys.number("rope.freq_base")?.unwrap_or(10_000.0);
    let rotated = keys.count("rope.dimension_count")?.filter(|&features| features > 0).unwrap_or(head_dim);
    let has = |name| keys.has_tensor(name);
    let mut json = json!({
        "vocab_size": keys.rows("token_embd.weight"),
        "hidden_size": hidden,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_hidden_layers": layers(keys)?,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv")?.unwrap_or(heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.required("context_length")?,
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon")?,
        "rope_theta": theta,
        "rope_scaling": rope_scaling(keys, theta, rotated)?,
        "tie_word_embeddings": !has("output.weight"),
        "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias"),
        "torch_dtype": "float32",
    });
    if rotated != head_dim {
        json["partial_rotary_factor"] = partial_rotary_factor(rotated, head_dim).into();
    }
    for key in TOKEN_IDS {
        let id = keys.global(&format!("tokenizer.ggml.{key}")).and_then(GgufValue::as_u64);
        if let Some(id) = id.filter(|&id| keys.rows("token_embd.weight").is_some_and(|tokens| id < tokens as u64)) {
            json[key.replace("padding", "pad")] = id.into();
        }
    }
    match json {
        Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

/// The fraction of a head that is rotated, as readers of config.json need it: they round the product with `head_dim` down.
fn partial_rotary_factor(rotated: usize, head_dim: usize) -> f64 {
    // Divided by a power of two, the quotient is exact.
    let spare = if head_dim.is_power_of_two() { 0.0 } else { 0.5 };
    (rotated as f64 + spare) / head_dim as f64
}

/// Number of layers, each of which has tensors: what follows holds names for all of them.
fn layers(keys: &GgufKeys) -> Result<usize> {
    let (layers, tensors) = (keys.required("block_count")?, keys.tensors());
    if layers > tensors {
        return Err(keys.error("block_count", &format!("is {layers}, but there are {tensors} tensors")));
    }
    Ok(layers)
}

/// Features of a head.
fn head_dim(keys: &GgufKeys, hidden: usize, heads: usize) -> Result<usize> {
    let [key, value] = ["attention.key_length", "attention.value_length"].map(|key| keys.count(key));
    let (key, value) = (key?, value?);
    match (key, value) {
        (Some(key), Some(value)) if key != value => {
            Err(keys.error("attention.value_length", &format!("is {value}, and that of keys {key}; expected the same")))
        }
        (Some(features), _) | (None, Some(features)) if features > 0 => Ok(features),
        _ if heads > 0 && hidden.is_multiple_of(heads) => Ok(hidden / heads),
        _ => Err(keys.error("embedding_length", &format!("is {hidden}, expected a multiple of {heads} heads"))),
    }
}
