//! The dimensions and constants of a base, from its `config.json` in the style of transformers 5 or before.

use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::Descriptor;
use crate::error::Result;
use serde_json::Value;

/// An architecture: how its `config.json` is read, and its descriptor.
#[derive(Debug)]
pub struct Architecture {
    /// `model_type` of its `config.json`.
    pub model_type: &'static str,
    /// What its layers are made of, with the biases that every such base has.
    pub descriptor: Descriptor,
    /// Reads its `config.json`.
    pub(crate) read: fn(&ConfigKeys) -> Result<BaseConfig>,
}

/// How rotary frequencies are scaled to reach positions beyond those of the pretraining.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All frequencies are divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies are divided by a factor, high ones kept, those between interpolated (Llama 3.1).
    Llama3 {
        /// The factor for low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` count as low frequencies.
        low: f64,
        /// Wavelengths below `original / high` count as high frequencies.
        high: f64,
        /// Number of positions of the pretraining.
        original: f64,
    },
}

/// The rotary embedding of a base.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Number of a head's features that are rotated.
    pub features: usize,
    /// How the frequencies are scaled.
    pub scaling: RopeScaling,
}

/// The dimensions and constants of a base.
#[derive(Clone, Debug, PartialEq)]
pub struct BaseConfig {
    /// What its layers are made of.
    pub descriptor: Descriptor,
    /// `model_type`, which names the architecture.
    pub model_type: String,
    /// Size of the vocabulary.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width within the MLP.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// The epsilon of the norms.
    pub epsilon: f64,
    /// The rotary embedding.
    pub rope: RopeConfig,
    /// The sliding window: the number of positions that a query sees, its own included.
    pub window: Option<usize>,
    /// Whether the LM head's weight is the embedding's.
    pub tied: bool,
    /// The longest sequence that the base was made for, in tokens.
    pub max_positions: usize,
}

/// What [`BaseConfig::from_json`] takes from an architecture, because each spells it in its own way.
pub(crate) struct ArchitectureKeys {
    pub(crate) descriptor: Descriptor,
    /// Features of a head; `hidden_size / num_attention_heads` where none are given.
    pub(crate) head_dim: Option<usize>,
    pub(crate) epsilon: f64,
    /// The fraction of a head's features that is rotated, where the file does not say.
    pub(crate) rotary_factor: RotaryFactor,
    pub(crate) window: Option<usize>,
}

/// The fraction of a head's features that is rotated.
pub(crate) enum RotaryFactor {
    /// All of them.
    Whole,
    /// `partial_rotary_factor`, with its default.
    Partial(f64),
}

impl BaseConfig {
    /// A config of the keys that all architectures spell alike, and of `keys`.
    pub(crate) fn from_json(json: &ConfigKeys, keys: ArchitectureKeys) -> Result<Self> {
        let (hidden, heads) = (json.required("hidden_size")?, json.required("num_attention_heads")?);
        let kv_heads = json.count("num_key_value_heads")?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            return Err(
                json.error(format!("num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"))
            );
        }
        let head_dim = match keys.head_dim {
            Some(features) => features,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                return Err(
                    json.error(format!("hidden_size {hidden} is not a multiple of num_attention_heads {heads}"))
                );
            }
        };
        Ok(Self {
            descriptor: keys.descriptor,
            model_type: json.text("model_type").unwrap_or_default().to_owned(),
            vocabulary: json.required("vocab_size")?,
            hidden,
            intermediate: json.required("intermediate_size")?,
            layers: json.required("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            epsilon: keys.epsilon,
            rope: RopeConfig::from_json(json, keys.rotary_factor, head_dim)?,
            window: keys.window,
            tied: json.flag("tie_word_embeddings", false)?,
            max_positions: json.count("max_position_embeddings")?.unwrap_or(2048),
        })
    }
}

impl RopeConfig {
    /// Reads `rope_parameters` (transformers 5), or the flat keys and `rope_scaling` (before).
    fn from_json(json: &ConfigKeys, factor: RotaryFactor, head_dim: usize) -> Result<Self> {
        let parameters = json.nested("rope_parameters");
        let inner = parameters.as_ref().unwrap_or(json);
        let number = |key, default| inner.number(key, json.number(key, default)?);
        let theta = number("rope_theta", 10_000.0)?;
        let factor = match factor {
            RotaryFactor::Whole => 1.0,
            RotaryFactor::Partial(default) => number("partial_rotary_factor", default)?,
        };
        let features = (head_dim as f64 * factor) as usize;
        if features < 2 || !features.is_multiple_of(2) || features > head_dim {
            return Err(json.error(format!(
                "{features} of the {head_dim} features of a head are rotated; expected an even number"
            )));
        }
        let scaling = match parameters.or_else(|| json.nested("rope_scaling")) {
            None => RopeScaling::None,
            Some(object) => RopeScaling::from_json(&object)?,
        };
        Ok(Self { theta, features, scaling })
    }
}

impl RopeScaling {
    fn from_json(json: &ConfigKeys) -> Result<Self> {
        let factor = || match json.get("factor").and_then(Value::as_f64) {
            Some(x) if x.is_finite() && x > 0.0 => Ok(x),
            _ => Err(json.error("rope scaling needs a 'factor' above zero")),
        };
        match json.text("rope_type").or_else(|| json.text("type")).unwrap_or("default") {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: factor()? }),
            "llama3" => Ok(Self::Llama3 {
                factor: factor()?,
                low: json.number("low_freq_factor", 1.0)?,
                high: json.number("high_freq_factor", 4.0)?,
                original: json.number("original_max_position_embeddings", 8192.0)?,
            }),
            other => Err(json.error(format!("rope scaling is '{other}'; supported are default, linear and llama3"))),
        }
    }
}
