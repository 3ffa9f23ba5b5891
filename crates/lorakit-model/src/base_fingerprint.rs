//! What identifies a base: its name, dimensions and fingerprint.
//!
//! Libraries on disk hold fingerprints, so the text that is hashed for a config of an architecture that was ever released
//! must never change. It is written out here field by field and does not follow the names in [`BaseConfig`]. A field that
//! only newer architectures have is appended, and only where it is set.

use crate::architecture::base_config::{AttentionKind, BaseConfig, EncoderConfig, QueryScale, Scales};
use crate::architecture::rope_config::RopeScaling;
use crate::weights::checkpoint::Checkpoint;
use lorakit_adapter::BaseIdentity;
use lorakit_format::hash::hex;
use sha2::{Digest, Sha256};

/// The identity of a base. Its fingerprint hashes the config's canonical text and the checkpoint's sampled hash.
pub(crate) fn base_identity(name: &str, config: &BaseConfig, checkpoint: &Checkpoint) -> BaseIdentity {
    let dimensions = [
        ("vocabulary", config.vocabulary),
        ("hidden", config.hidden),
        ("intermediate", config.intermediate),
        ("layers", config.layers),
        ("heads", config.heads),
        ("kv_heads", config.kv_heads),
        ("head_dim", config.head_dim),
    ];
    let encoder = config.encoder.map(|encoder| ("encoder_layers", encoder.layers));
    let mut hash = Sha256::new();
    hash.update(canonical_text(config));
    hash.update(checkpoint.sampled_hash());
    BaseIdentity {
        name: name.to_string(),
        on_hub: Some(false),
        architecture: config.model_type.clone(),
        dimensions: dimensions.into_iter().chain(encoder).map(|(key, value)| (key.to_string(), value as u64)).collect(),
        fingerprint: hex(&hash.finalize()),
        form: checkpoint.form(),
    }
}

/// The text of `config`: every value that the results depend on.
fn canonical_text(config: &BaseConfig) -> String {
    let descriptor = &config.descriptor;
    let first = &config.attention[0];
    let mut fields = vec![
        ("form", descriptor.family.to_string()),
        ("model_type", format!("{:?}", config.model_type)),
        ("vocabulary", config.vocabulary.to_string()),
        ("hidden", config.hidden.to_string()),
        ("intermediate", config.intermediate.to_string()),
        ("layers", config.layers.to_string()),
        ("heads", config.heads.to_string()),
        ("kv_heads", config.kv_heads.to_string()),
        ("head_dim", config.head_dim.to_string()),
        ("epsilon", number(config.epsilon)),
        ("rope", rope(first)),
        ("window", window(first)),
        ("tied", config.tied.to_string()),
        ("attention_bias", descriptor.attention_input.bias.to_string()),
        ("mlp_bias", descriptor.mlp_input.bias.to_string()),
        ("max_positions", positions(config).to_string()),
    ];
    fields.extend(set_fields(config));
    record("Config", &fields)
}

/// The maximum length of a row. Where queries grow from the pretraining's length on, earlier versions took no longer rows;
/// below it nothing has changed.
fn positions(config: &BaseConfig) -> usize {
    let most = config.scales.query_scale.map_or(usize::MAX, |scale| scale.original as usize);
    config.max_positions.min(most)
}

/// The fields of newer architectures that are set.
fn set_fields(config: &BaseConfig) -> Vec<(&'static str, String)> {
    let (descriptor, scales, plain) = (&config.descriptor, &config.scales, Scales::default());
    let mut fields = Vec::new();
    let mut add = |name, is_set: bool, text: &dyn Fn() -> String| {
        if is_set {
            fields.push((name, text()));
        }
    };
    let kinds = || {
        let kind = |kind: &AttentionKind| record("Attention", &[("rope", rope(kind)), ("window", window(kind))]);
        format!("[{}]", config.attention.iter().map(kind).collect::<Vec<_>>().join(", "))
    };
    add("attention", config.attention.len() > 1, &kinds);
    add("layer_attention", config.attention.len() > 1, &|| format!("{:?}", config.attention_of_layer));
    let output_bias = descriptor.attention_output.bias;
    add("attention_output_bias", output_bias != descriptor.attention_input.bias, &|| output_bias.to_string());
    let encoder = || {
        let number = |of: fn(&EncoderConfig) -> usize| config.encoder.as_ref().map_or(0, of).to_string();
        record(
            "Encoder",
            &[
                ("layers", number(|encoder| encoder.layers)),
                ("decoder_start", number(|encoder| encoder.decoder_start as usize)),
                ("buckets", number(|encoder| encoder.buckets.count)),
                ("farthest", number(|encoder| encoder.buckets.farthest)),
            ],
        )
    };
    add("encoder", config.encoder.is_some(), &encoder);
    for (name, value, default) in [
        ("embedding_multiplier", scales.embedding, plain.embedding),
        ("residual_multiplier", scales.residual, plain.residual),
        ("logit_multiplier", scales.logits, plain.logits),
    ] {
        add(name, value != default, &|| number(value));
    }
    for (name, value) in [
        ("attention_scale", scales.attention),
        ("attention_soft_cap", scales.attention_soft_cap),
        ("logit_soft_cap", scales.logit_soft_cap),
    ] {
        add(name, value.is_some(), &|| value.map(number).unwrap_or_default());
    }
    let queries =
        |scale: QueryScale| record("QueryScale", &[("beta", number(scale.beta)), ("original", number(scale.original))]);
    // Ministral 3's own is not written, since earlier versions did not.
    let other = scales.query_scale.filter(|scale| scale.beta != 0.1);
    add("query_scale", other.is_some(), &|| other.map(queries).unwrap_or_default());
    fields
}

fn window(kind: &AttentionKind) -> String {
    kind.window.map_or_else(|| "None".to_string(), |window| format!("Some({window})"))
}

fn rope(kind: &AttentionKind) -> String {
    let Some(rope) = &kind.rope else { return "None".to_string() };
    let numbers = |values: &[f64]| format!("[{}]", values.iter().map(|&x| number(x)).collect::<Vec<_>>().join(", "));
    let scaling = match &rope.scaling {
        RopeScaling::None => "None".to_string(),
        &RopeScaling::Linear { factor } => record("Linear", &[("factor", number(factor))]),
        &RopeScaling::Dynamic { factor, original } => {
            record("Dynamic", &[("factor", number(factor)), ("original", number(original))])
        }
        &RopeScaling::Llama3 { factor, low, high, original } => record(
            "Llama3",
            &[("factor", number(factor)), ("low", number(low)), ("high", number(high)), ("original", number(original))],
        ),
        &RopeScaling::Yarn { factor, fast, slow, original, attention_factor, truncate } => record(
            "Yarn",
            &[
                ("factor", number(factor)),
                ("fast", number(fast)),
                ("slow", number(slow)),
                ("original", number(original)),
                ("attention_factor", number(attention_factor)),
                ("truncate", truncate.to_string()),
            ],
        ),
        RopeScaling::LongRope { short, long, original, attention_factor } => record(
            "LongRope",
            &[
                ("short", numbers(short)),
                ("long", numbers(long)),
                ("original", number(*original)),
                ("attention_factor", number(*attention_factor)),
            ],
        ),
    };
    record("Rope", &[("theta", number(rope.theta)), ("features", rope.features.to_string()), ("scaling", scaling)])
}

/// The shortest decimal form that reads back as the same number, always with a point or an exponent: `1.0`, `1e-5`.
fn number(value: f64) -> String {
    format!("{value:?}")
}

fn record(name: &str, fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key}: {value}")).collect();
    format!("{name} {{ {} }}", fields.join(", "))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::{Value, json};

    fn assert_text(config: Value, expected: &str) {
        let config = BaseConfig::parse(&config.to_string(), "config.json").unwrap();
        assert_eq!(canonical_text(&config), expected);
    }

    #[test]
    fn a_mistral_with_a_sliding_window() {
        assert_text(
            json!({
                "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
                "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_act": "silu",
                "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096,
            }),
            "Config { form: Mistral, model_type: \"mistral\", vocabulary: 32000, hidden: 4096, intermediate: 14336, \
             layers: 32, heads: 32, kv_heads: 8, head_dim: 128, epsilon: 1e-5, rope: Rope { theta: 10000.0, \
             features: 128, scaling: None }, window: Some(4096), tied: false, attention_bias: false, mlp_bias: \
             false, max_positions: 32768 }",
        );
    }

    #[test]
    fn a_tied_llama_with_scaled_rope() {
        assert_text(
            json!({
                "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
                "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
                "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": true,
                "rope_scaling": {
                    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
            }),
            "Config { form: Mistral, model_type: \"llama\", vocabulary: 128256, hidden: 2048, intermediate: 8192, \
             layers: 16, heads: 32, kv_heads: 8, head_dim: 64, epsilon: 1e-5, rope: Rope { theta: 500000.0, \
             features: 64, scaling: Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192.0 } }, window: \
             None, tied: true, attention_bias: false, mlp_bias: false, max_positions: 131072 }",
        );
    }

    #[test]
    fn a_llama_with_biases_and_linear_rope() {
        assert_text(
            json!({
                "model_type": "llama", "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
                "num_attention_heads": 6, "attention_bias": true, "mlp_bias": true, "rms_norm_eps": 1e-6,
                "rope_scaling": { "type": "linear", "factor": 2.5 },
            }),
            "Config { form: Mistral, model_type: \"llama\", vocabulary: 61, hidden: 24, intermediate: 40, layers: \
             3, heads: 6, kv_heads: 6, head_dim: 4, epsilon: 1e-6, rope: Rope { theta: 10000.0, features: 4, \
             scaling: Linear { factor: 2.5 } }, window: None, tied: false, attention_bias: true, mlp_bias: true, \
             max_positions: 2048 }",
        );
    }

    #[test]
    fn a_phi() {
        assert_text(
            json!({
                "model_type": "phi", "vocab_size": 51200, "hidden_size": 2560, "intermediate_size": 10240,
                "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5,
                "max_position_embeddings": 2048, "partial_rotary_factor": 0.4, "rope_theta": 1e20,
            }),
            "Config { form: Phi, model_type: \"phi\", vocabulary: 51200, hidden: 2560, intermediate: 10240, layers: \
             32, heads: 32, kv_heads: 32, head_dim: 80, epsilon: 1e-5, rope: Rope { theta: 1e20, features: 32, \
             scaling: None }, window: None, tied: false, attention_bias: true, mlp_bias: true, max_positions: \
             2048 }",
        );
    }
}
