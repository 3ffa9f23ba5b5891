//! T5: an encoder-decoder with biases of scores by distance in place of rotation, unscaled scores, and no other biases. The
//! first form has ReLU and a tied head, whose logits are scaled; v1.1 and Flan gate the MLP and have a head of their own.

use crate::architecture::base_config::{
    Architecture, ArchitectureKeys, AttentionKind, BaseConfig, EncoderConfig, Scales,
};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{
    BlockDescriptor, BranchNorms, CrossAttentionDescriptor, Descriptor, EncoderDescriptor, Features,
    ProjectionDescriptor, SiteDescriptor,
};
use crate::architecture::rope_config::RotaryFactor;
use crate::attention::distance_buckets::DistanceBuckets;
use crate::error::Result;
use crate::layer::activation::Activation;
use crate::layer::norm::NormKind;
use serde_json::{Value, json};

/// `model_type: t5`.
pub(crate) static T5: Architecture = Architecture { model_type: "t5", descriptor: GATED, gguf: None, read };

/// The longest row, source and target, where the file names no longer one: distances have no limit.
const MAX_POSITIONS: usize = 2048;

/// v1.1 and Flan: `h += wo(gelu(wi_0(norm h)) * wi_1(norm h))`.
const GATED: Descriptor = Descriptor {
    family: "T5Gated",
    activation: Activation::GeGlu,
    mlp_input: SiteDescriptor {
        name: "wi",
        projections: &[
            ProjectionDescriptor { module: "layer.2.DenseReluDense.wi_0", outputs: &[Features::Inner] },
            ProjectionDescriptor { module: "layer.2.DenseReluDense.wi_1", outputs: &[Features::Inner] },
        ],
        bias: false,
    },
    encoder: Some(&EncoderDescriptor {
        mlp_input: SiteDescriptor {
            name: "wi",
            projections: &[
                ProjectionDescriptor { module: "layer.1.DenseReluDense.wi_0", outputs: &[Features::Inner] },
                ProjectionDescriptor { module: "layer.1.DenseReluDense.wi_1", outputs: &[Features::Inner] },
            ],
            bias: false,
        },
        ..ENCODER
    }),
    ..FIRST
};

/// The same with SiLU in place of GELU.
const SILU: Descriptor = Descriptor { family: "T5GatedSilu", activation: Activation::SwiGlu, ..GATED };

/// The first T5: `h += wo(relu(wi(norm h)))`.
const FIRST: Descriptor = Descriptor {
    family: "T5",
    embedding: "shared",
    layers: "decoder.block",
    final_norm: "decoder.final_layer_norm",
    lm_head: "lm_head",
    unused: &[],
    lm_head_bias: false,
    norm: NormKind::Rms,
    block: BlockDescriptor::Sequential {
        attention: BranchNorms::before("layer.0.layer_norm"),
        mlp: BranchNorms::before("layer.2.layer_norm"),
    },
    qk_norm: None,
    activation: Activation::Relu,
    attention_input: SiteDescriptor {
        name: "qkv",
        projections: &[
            ProjectionDescriptor { module: "layer.0.SelfAttention.q", outputs: &[Features::Queries] },
            ProjectionDescriptor { module: "layer.0.SelfAttention.k", outputs: &[Features::Keys] },
            ProjectionDescriptor { module: "layer.0.SelfAttention.v", outputs: &[Features::Values] },
        ],
        bias: false,
    },
    attention_output: SiteDescriptor {
        name: "o",
        projections: &[ProjectionDescriptor { module: "layer.0.SelfAttention.o", outputs: &[Features::Hidden] }],
        bias: false,
    },
    mlp_input: SiteDescriptor {
        name: "wi",
        projections: &[ProjectionDescriptor { module: "layer.2.DenseReluDense.wi", outputs: &[Features::Inner] }],
        bias: false,
    },
    mlp_output: SiteDescriptor {
        name: "wo",
        projections: &[ProjectionDescriptor { module: "layer.2.DenseReluDense.wo", outputs: &[Features::Hidden] }],
        bias: false,
    },
    encoder: Some(&ENCODER),
};

/// The encoder of the first T5.
const ENCODER: EncoderDescriptor = EncoderDescriptor {
    layers: "encoder.block",
    final_norm: "encoder.final_layer_norm",
    block: BlockDescriptor::Sequential {
        attention: BranchNorms::before("layer.0.layer_norm"),
        mlp: BranchNorms::before("layer.1.layer_norm"),
    },
    mlp_input: SiteDescriptor {
        name: "wi",
        projections: &[ProjectionDescriptor { module: "layer.1.DenseReluDense.wi", outputs: &[Features::Inner] }],
        bias: false,
    },
    mlp_output: SiteDescriptor {
        name: "wo",
        projections: &[ProjectionDescriptor { module: "layer.1.DenseReluDense.wo", outputs: &[Features::Hidden] }],
        bias: false,
    },
    cross_attention: CrossAttentionDescriptor {
        norm: "layer.1.layer_norm",
        queries: SiteDescriptor {
            name: "cross_q",
            projections: &[ProjectionDescriptor { module: "layer.1.EncDecAttention.q", outputs: &[Features::Queries] }],
            bias: false,
        },
        keys_values: SiteDescriptor {
            name: "cross_kv",
            projections: &[
                ProjectionDescriptor { module: "layer.1.EncDecAttention.k", outputs: &[Features::Keys] },
                ProjectionDescriptor { module: "layer.1.EncDecAttention.v", outputs: &[Features::Values] },
            ],
            bias: false,
        },
        output: SiteDescriptor {
            name: "cross_o",
            projections: &[ProjectionDescriptor { module: "layer.1.EncDecAttention.o", outputs: &[Features::Hidden] }],
            bias: false,
        },
    },
    distance_bias: "layer.0.SelfAttention.relative_attention_bias",
    embedding_copies: &["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"],
    unused: &["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
};

/// Reads the keys of T5Config, whose names for dimensions are its own.
fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    if !json.flag("is_encoder_decoder", true)? {
        return Err(json.error("key `is_encoder_decoder` is false; lorakit reads T5 with encoder and decoder"));
    }
    let descriptor = descriptor(json)?;
    let (hidden, layers) = (json.required("d_model")?, json.required("num_layers")?);
    let decoder_layers = json.count("num_decoder_layers")?.unwrap_or(layers);
    let longest = json.count("n_positions")?.unwrap_or(0).max(MAX_POSITIONS);
    let named = json.with_defaults(json!({
        "hidden_size": hidden,
        "intermediate_size": json.required("d_ff")?,
        "num_attention_heads": json.required("num_heads")?,
        "num_hidden_layers": layers + decoder_layers,
        "max_position_embeddings": longest,
        "tie_word_embeddings": true,
    }));
    let keys = ArchitectureKeys {
        descriptor,
        head_dim: Some(json.required("d_kv")?),
        epsilon: json.number("layer_norm_epsilon", 1e-6)?,
        rotary_factor: RotaryFactor::Whole,
    };
    let config = BaseConfig::from_json(&named, keys)?;
    let scaled = json.flag("scale_decoder_outputs", config.tied)?;
    Ok(BaseConfig {
        encoder: Some(EncoderConfig {
            layers,
            decoder_start: decoder_start(json, config.vocabulary)?,
            buckets: buckets(json)?,
        }),
        attention: vec![AttentionKind { window: None, rope: None }],
        scales: Scales {
            attention: Some(1.0),
            logits: if scaled { (hidden as f64).powf(-0.5) } else { 1.0 },
            ..Scales::default()
        },
        ..config
    })
}

/// The layers that `feed_forward_proj` asks for.
fn descriptor(json: &ConfigKeys) -> Result<Descriptor> {
    match json.text("feed_forward_proj")?.unwrap_or("relu") {
        "relu" => Ok(FIRST),
        "gated-gelu" => Ok(GATED),
        "gated-silu" | "gated-swish" => Ok(SILU),
        other => {
            Err(json
                .error(format!("key `feed_forward_proj` is `{other}`; supported are relu, gated-gelu and gated-silu")))
        }
    }
}

/// The token that a target begins with: `decoder_start_token_id`, or padding.
fn decoder_start(json: &ConfigKeys, vocabulary: usize) -> Result<u32> {
    let found = ["decoder_start_token_id", "pad_token_id"].into_iter().find_map(|key| Some((key, json.get(key)?)));
    let (key, value) = match found {
        Some((key, value)) => (key, value.clone()),
        None => ("pad_token_id", Value::from(0)),
    };
    let id = value.as_u64().filter(|&id| id < vocabulary as u64).and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| json.error(format!("key `{key}` is {value}, expected the id of one of {vocabulary} tokens")))
}

/// The bucket of every distance up to the farthest is kept in a table.
const MOST_DISTANT: usize = 1 << 20;

/// How distances are told apart.
fn buckets(json: &ConfigKeys) -> Result<DistanceBuckets> {
    let count = json.count("relative_attention_num_buckets")?.unwrap_or(32);
    let farthest = json.count("relative_attention_max_distance")?.unwrap_or(128);
    if count < 4 || farthest <= count / 2 || farthest > MOST_DISTANT {
        return Err(json.error(format!(
            "{count} buckets up to a distance of {farthest} (keys `relative_attention_num_buckets` and \
             `relative_attention_max_distance`): expected at least 4 buckets, and a distance of more \
             than half of them and at most {MOST_DISTANT}"
        )));
    }
    Ok(DistanceBuckets { count, farthest })
}
