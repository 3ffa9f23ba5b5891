//! Phi-3, 3.5, 4 and 4-mini: Llama's layers with q, k and v in one module, and gate and up in one.

use crate::architecture::base_config::{Architecture, ArchitectureKeys, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{Descriptor, Features, ProjectionDescriptor, SiteDescriptor};
use crate::architecture::gguf::gguf_keys::GgufKeys;
use crate::architecture::gguf::gguf_mapping::GgufMapping;
use crate::architecture::llama;
use crate::architecture::rope_config::{RopeConfig, RopeScaling, RotaryFactor};
use crate::error::Result;
use serde_json::{Map, Value, json};

/// `model_type: phi3`.
pub(crate) static PHI3: Architecture =
    Architecture { model_type: "phi3", descriptor: DESCRIPTOR, gguf: Some(GGUF), read };

const GGUF: GgufMapping = GgufMapping { architecture: "phi3", class: "Phi3ForCausalLM", interleaved: false, add_keys };

const DESCRIPTOR: Descriptor = Descriptor {
    attention_input: SiteDescriptor {
        name: "qkv",
        projections: &[ProjectionDescriptor {
            module: "self_attn.qkv_proj",
            outputs: &[Features::Queries, Features::Keys, Features::Values],
        }],
        bias: false,
    },
    mlp_input: SiteDescriptor {
        name: "gate_up",
        projections: &[ProjectionDescriptor {
            module: "mlp.gate_up_proj",
            outputs: &[Features::Inner, Features::Inner],
        }],
        bias: false,
    },
    ..llama::DESCRIPTOR
};

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    let json = json.with_defaults(json!({
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    }));
    json.expect_silu()?;
    let rope = RopeConfig::parameters(&json)?;
    let json = match RopeScaling::kind(&rope)? {
        "default" | "longrope" => json,
        // What files of Phi-3 call longrope too.
        "su" | "yarn" => {
            let rope = rope.with_value("rope_type", "longrope").into_value();
            json.without(&["rope_scaling"]).with_value("rope_parameters", rope)
        }
        other => {
            return Err(json.error(format!("rope scaling is `{other}`; supported for Phi-3 are default and longrope")));
        }
    };
    let config = BaseConfig::from_json(
        &json,
        ArchitectureKeys {
            descriptor: DESCRIPTOR,
            head_dim: json.count("head_dim")?,
            epsilon: json.number("rms_norm_eps", 1e-5)?,
            rotary_factor: RotaryFactor::Partial(1.0),
        },
    )?;
    Ok(config.with_window(json.count("sliding_window")?))
}

fn add_keys(keys: &GgufKeys, json: &mut Map<String, Value>) -> Result<()> {
    json.insert("hidden_act".to_owned(), "silu".into());
    let original = match keys.count("rope.scaling.original_context_length")? {
        Some(original) => original,
        None => keys.required("context_length")?,
    };
    json.insert("original_max_position_embeddings".to_owned(), json!(original));
    json.insert(
        "sliding_window".to_owned(),
        json!(keys.count("attention.sliding_window")?.filter(|&window| window > 0)),
    );
    Ok(())
}
