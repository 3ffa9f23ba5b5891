//! The dimensions and constants of a base, from its `config.json` in the style of transformers 5 or before.

use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::Descriptor;
use crate::architecture::gguf::gguf_mapping::GgufMapping;
use crate::architecture::rope_config::{RopeConfig, RopeScaling, RotaryFactor};
use crate::attention::distance_buckets::DistanceBuckets;
use crate::error::Result;

/// More layers than any base has: lists of as many are made before a weight is looked at.
const MAX_LAYERS: usize = 1 << 16;

/// An architecture: how its `config.json` is read, and its descriptor.
#[derive(Debug)]
pub struct Architecture {
    /// `model_type` of its `config.json`.
    pub model_type: &'static str,
    /// What its layers are made of, with the biases that every such base has.
    pub descriptor: Descriptor,
    /// How its files in GGUF are written, if they are read.
    pub(crate) gguf: Option<GgufMapping>,
    /// Reads its `config.json`.
    pub(crate) read: fn(&ConfigKeys) -> Result<BaseConfig>,
}

/// What the attention of a layer sees, and how it rotates queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionKind {
    /// The sliding window: the number of positions that a query sees, its own included.
    pub window: Option<usize>,
    /// The rotary embedding; none where positions are not encoded.
    pub rope: Option<RopeConfig>,
}

/// Constants that some bases multiply with, and caps of their scores and logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scales {
    /// What embeddings are multiplied with.
    pub embedding: f64,
    /// What the outputs of attention and MLP are multiplied with before they are added to the residual stream.
    pub residual: f64,
    /// What logits are multiplied with.
    pub logits: f64,
    /// The scale of attention scores, where it is not `1 / sqrt(head_dim)`.
    pub attention: Option<f64>,
    /// What queries are multiplied by for their position, if they are.
    pub query_scale: Option<QueryScale>,
    /// Attention scores become `cap tanh(score / cap)`.
    pub attention_soft_cap: Option<f64>,
    /// Logits become `cap tanh(logit / cap)`.
    pub logit_soft_cap: Option<f64>,
}

/// A factor of queries that grows with their position `p` beyond the length of the pretraining:
/// `1 + beta ln(1 + floor(p / original))` (Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryScale {
    /// How fast it grows.
    pub beta: f64,
    /// Number of positions of the pretraining.
    pub original: f64,
}

impl QueryScale {
    /// The factor at a position.
    pub fn at(&self, position: u32) -> f32 {
        (1.0 + self.beta * (1.0 + (f64::from(position) / self.original).floor()).ln()) as f32
    }
}

impl Default for Scales {
    fn default() -> Self {
        Self {
            embedding: 1.0,
            residual: 1.0,
            logits: 1.0,
            attention: None,
            query_scale: None,
            attention_soft_cap: None,
            logit_soft_cap: None,
        }
    }
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
    /// Number of layers, those of an encoder first.
    pub layers: usize,
    /// What an encoder-decoder has besides; none for a decoder.
    pub encoder: Option<EncoderConfig>,
    /// Number of query heads.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Features of one head.
    pub head_dim: usize,
    /// The epsilon of the norms.
    pub epsilon: f64,
    /// The kinds of attention among its layers: one in most bases, a global and a local one in some.
    pub attention: Vec<AttentionKind>,
    /// The index of each layer's kind of attention.
    pub attention_of_layer: Vec<usize>,
    /// Multipliers and soft caps.
    pub scales: Scales,
    /// Whether the LM head's weight is the embedding's.
    pub tied: bool,
    /// The longest sequence that the base was made for, in tokens.
    pub max_positions: usize,
    /// What in the file contradicts itself, and how it was read.
    pub warnings: Vec<String>,
}

/// What an encoder-decoder has besides its decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderConfig {
    /// Number of its layers, the first of all.
    pub layers: usize,
    /// The token that a decoder's row begins with.
    pub decoder_start: u32,
    /// How distances between tokens are told apart, in both stacks.
    pub buckets: DistanceBuckets,
}

/// What [`BaseConfig::from_json`] takes from an architecture, because each spells it in its own way.
pub(crate) struct ArchitectureKeys {
    pub(crate) descriptor: Descriptor,
    /// Features of a head; `hidden_size / num_attention_heads` where none are given.
    pub(crate) head_dim: Option<usize>,
    pub(crate) epsilon: f64,
    /// The fraction of a head's features that is rotated, where the file does not say.
    pub(crate) rotary_factor: RotaryFactor,
}

impl BaseConfig {
    /// A config of the keys that all architectures spell alike, and of `keys`: all layers see every position before them.
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
        let layers = json.required("num_hidden_layers")?;
        if layers > MAX_LAYERS {
            return Err(json.error(format!("num_hidden_layers is {layers}; expected at most {MAX_LAYERS}")));
        }
        let rope = RopeConfig::from_json(json, keys.rotary_factor, head_dim)?;
        Ok(Self {
            descriptor: keys.descriptor,
            model_type: json.text("model_type")?.unwrap_or_default().to_owned(),
            vocabulary: json.required("vocab_size")?,
            hidden,
            intermediate: json.required("intermediate_size")?,
            layers,
            encoder: None,
            heads,
            kv_heads,
            head_dim,
            epsilon: keys.epsilon,
            max_positions: max_positions(json, &rope)?,
            attention: vec![AttentionKind { window: None, rope: Some(rope) }],
            attention_of_layer: vec![0; layers],
            scales: Scales::default(),
            tied: json.flag("tie_word_embeddings", false)?,
            warnings: RopeConfig::warning(json)?.into_iter().collect(),
        })
    }

    /// The token that the decoder of an encoder-decoder begins with; none for a decoder alone.
    pub fn decoder_start(&self) -> Option<u32> {
        self.encoder.map(|encoder| encoder.decoder_start)
    }

    /// Whether layer `index` is one of an encoder.
    pub(crate) fn is_encoder_layer(&self, index: usize) -> bool {
        self.encoder.is_some_and(|encoder| index < encoder.layers)
    }

    /// The attention of layer `index`.
    pub fn layer_attention(&self, index: usize) -> &AttentionKind {
        &self.attention[self.attention_of_layer[index]]
    }

    /// The same where every layer sees no more than `window` positions, if there is one.
    pub(crate) fn with_window(mut self, window: Option<usize>) -> Self {
        self.attention.iter_mut().for_each(|kind| kind.window = window);
        self
    }

    /// The same where the layers with `is_local`, one for each layer, have an attention of their own.
    pub(crate) fn with_local_layers(self, is_local: &[bool], local: &AttentionKind) -> Self {
        let global = self.attention[0].clone();
        self.with_layer_kinds(is_local.iter().map(|&is_local| if is_local { local } else { &global }))
    }

    /// The same where each layer has the attention that `kinds` gives it. Of the present kinds, those in use stay first.
    pub(crate) fn with_layer_kinds<'a>(mut self, kinds: impl Iterator<Item = &'a AttentionKind> + Clone) -> Self {
        if kinds.clone().next().is_none() {
            return self;
        }
        self.attention.retain(|known| kinds.clone().any(|kind| kind == known));
        let attention = &mut self.attention;
        let index = |kind: &AttentionKind| {
            attention.iter().position(|known| known == kind).unwrap_or_else(|| {
                attention.push(kind.clone());
                attention.len() - 1
            })
        };
        self.attention_of_layer = kinds.map(index).collect();
        self
    }
}

/// The longest sequence: `max_position_embeddings`, or what a scaling extends it to that leaves this key as it was.
fn max_positions(json: &ConfigKeys, rope: &RopeConfig) -> Result<usize> {
    let own = json.count("max_position_embeddings")?.unwrap_or(2048);
    Ok(match rope.scaling {
        RopeScaling::Dynamic { factor, original } | RopeScaling::Yarn { factor, original, .. } => {
            own.max((original * factor) as usize)
        }
        _ => own,
    })
}
