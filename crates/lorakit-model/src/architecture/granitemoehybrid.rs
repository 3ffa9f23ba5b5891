//! The dense models among Granite 4, whose configs are those of the hybrids with mixtures of experts: Granite's layers with
//! the MLP under the name of what experts share, and perhaps without rope.

use crate::architecture::base_config::{Architecture, AttentionKind, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::descriptor::{Descriptor, Features, ProjectionDescriptor, SiteDescriptor};
use crate::architecture::{granite, llama};
use crate::error::Result;
use serde_json::{Value, json};

/// `model_type: granitemoehybrid`.
pub(crate) static GRANITE_MOE_HYBRID: Architecture =
    Architecture { model_type: "granitemoehybrid", descriptor: DESCRIPTOR, gguf: None, read };

const DESCRIPTOR: Descriptor = Descriptor {
    mlp_input: SiteDescriptor {
        name: "gate_up",
        projections: &[ProjectionDescriptor {
            module: "shared_mlp.input_linear",
            outputs: &[Features::Inner, Features::Inner],
        }],
        bias: false,
    },
    mlp_output: SiteDescriptor {
        name: "down",
        projections: &[ProjectionDescriptor { module: "shared_mlp.output_linear", outputs: &[Features::Hidden] }],
        bias: false,
    },
    ..llama::DESCRIPTOR
};

fn read(json: &ConfigKeys) -> Result<BaseConfig> {
    if json.get("num_local_experts").and_then(Value::as_u64) != Some(0) {
        return Err(json.error("key `num_local_experts` is not 0: mixtures of experts within a base are not supported"));
    }
    let layers = json.required("num_hidden_layers")?;
    let is_attention = |kind: &Value| matches!(kind.as_str(), Some("attention" | "full_attention"));
    // Its older name takes precedence, as in transformers.
    let key = if json.get("layers_block_type").is_some() { "layers_block_type" } else { "layer_types" };
    let absence = match json.of_layers(key, layers)? {
        Some(types) if types.iter().all(is_attention) => None,
        Some(_) => Some(""),
        None => Some(" is missing, which stands for layers of linear attention"),
    };
    if let Some(absence) = absence {
        return Err(
            json.error(format!("key `{key}`{absence}: layers of linear attention or state spaces are not supported"))
        );
    }
    let inner = json.count("shared_intermediate_size")?.unwrap_or(1024);
    let json = &json.clone().without(&["intermediate_size"]).with_defaults(json!({ "intermediate_size": inner }));
    let config = granite::read(json)?;
    let descriptor = DESCRIPTOR.with_biases(json.flag("attention_bias", false)?, false);
    let attention = match json.text("position_embedding_type")? {
        Some("rope") => config.attention,
        Some(other) => {
            return Err(json.error(format!("key `position_embedding_type` is `{other}`; supported are rope and null")));
        }
        None => vec![AttentionKind { window: None, rope: None }],
    };
    Ok(BaseConfig { descriptor, attention, ..config })
}
