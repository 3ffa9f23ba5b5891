//! The list of architectures, and reading a config by its `model_type`.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::quantization_config::ensure_readable;
use crate::architecture::{
    gemma2, gemma3, gemma3_text, granite, granitemoehybrid, llama, ministral3, mistral, mistral3, olmo2, olmo3, phi,
    phi3, qwen2, qwen3, smollm3, t5,
};
use crate::error::{ModelError, Result};
use lorakit_format::read_text;
use lorakit_lora::SiteRole;
use serde_json::Value;
use std::path::Path;

/// All architectures.
pub static ARCHITECTURES: &[&Architecture] = &[
    &mistral::MISTRAL,
    &mistral3::MISTRAL3,
    &mistral::MINISTRAL,
    &ministral3::MINISTRAL3,
    &llama::LLAMA,
    &phi::PHI,
    &qwen2::QWEN2,
    &qwen3::QWEN3,
    &gemma2::GEMMA2,
    &gemma3_text::GEMMA3_TEXT,
    &gemma3::GEMMA3,
    &phi3::PHI3,
    &olmo2::OLMO2,
    &olmo3::OLMO3,
    &granite::GRANITE,
    &granitemoehybrid::GRANITE_MOE_HYBRID,
    &smollm3::SMOLLM3,
    &t5::T5,
];

/// The last names of the modules that have `role` in any architecture, each once, as `q_proj`.
pub fn module_names(role: SiteRole) -> Vec<&'static str> {
    let mut names = Vec::new();
    let sites = ARCHITECTURES.iter().flat_map(|architecture| architecture.descriptor.sites());
    for projection in sites.filter(|(own, _)| *own == role).flat_map(|(_, site)| site.projections) {
        let name = projection.module.rsplit('.').next().unwrap_or(projection.module);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Keys that hold the number of experts within the layers of a base.
const EXPERT_COUNTS: [&str; 4] = ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];

/// What lorakit lacks for the bases of a `model_type`, where that is known, by what is in the name.
fn missing_part(model_type: &str) -> Option<&'static str> {
    let is = |names: &[&str]| names.iter().any(|name| model_type.contains(name));
    if is(&["phi3small", "phi3_small", "phi-3-small"]) {
        Some("block-sparse attention")
    } else if is(&[
        "hybrid",
        "mamba",
        "jamba",
        "bamba",
        "zamba",
        "falcon_h1",
        "nemotron_h",
        "kimi_linear",
        "rwkv",
        "lfm",
    ]) || is(&["qwen3_next", "qwen3_5", "recurrent_gemma", "minimax"])
    {
        Some("layers of linear attention or state spaces")
    } else if is(&["moe", "mixtral", "deepseek", "gpt_oss", "llama4", "dbrx", "jetmoe", "glm4_5", "ernie4_5_moe"]) {
        Some("mixtures of experts within its layers")
    } else if is(&["_vl", "vl_", "vision", "llava", "mllama", "paligemma", "idefics", "pixtral", "gemma3n", "gemma4"])
        || is(&["internvl", "multimodal", "omni", "fuyu", "kosmos", "chameleon"])
    {
        Some("images or sound beside its text model")
    } else {
        None
    }
}

/// The same by the keys of a config whose `model_type` says nothing.
fn missing_part_by_keys(json: &ConfigKeys) -> Option<&'static str> {
    let parts = [Some(json.clone()), json.nested("text_config").ok().flatten()];
    let parts = || parts.iter().flatten();
    let counts = parts().flat_map(|json| EXPERT_COUNTS.map(|key| json.get(key).and_then(Value::as_u64)));
    let kinds = parts().filter_map(|json| json.get("layer_types")?.as_array()).flatten();
    if kinds.filter_map(Value::as_str).any(|kind| ["linear_attention", "mamba", "conv", "recurrent"].contains(&kind)) {
        Some("layers of linear attention or state spaces")
    } else if counts.flatten().any(|count| count > 1) {
        Some("mixtures of experts within its layers")
    } else if ["vision_config", "audio_config"].iter().any(|key| json.get(key).is_some()) {
        Some("images or sound beside its text model")
    } else {
        None
    }
}

impl BaseConfig {
    /// Reads `config.json` of a model folder.
    ///
    /// # Errors
    /// If there is none, or as [`BaseConfig::parse`].
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = read_text(&path).map_err(|source| ModelError::NoConfig { path: path.clone(), source })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Reads the text of a `config.json`; errors name it as `file`.
    ///
    /// # Errors
    /// If a key is missing or has an unexpected value, or the architecture is not one of [`ARCHITECTURES`].
    pub fn parse(text: &str, file: &str) -> Result<Self> {
        Self::of_keys(&ConfigKeys::parse(text, file)?)
    }

    /// Reads the keys of a `config.json`.
    pub(crate) fn of_keys(json: &ConfigKeys) -> Result<Self> {
        let model_type = json.text("model_type")?.ok_or_else(|| json.error("key `model_type` is missing"))?;
        let Some(architecture) = ARCHITECTURES.iter().find(|known| known.model_type == model_type) else {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|known| known.model_type).collect();
            let missing = missing_part(model_type).or_else(|| missing_part_by_keys(json));
            let missing = missing.map(|part| format!(", which needs {part}")).unwrap_or_default();
            return Err(
                json.error(format!("key `model_type` is `{model_type}`{missing}; supported are {}", known.join(", ")))
            );
        };
        if let Some(key) = EXPERT_COUNTS.iter().find(|key| json.get(key).and_then(Value::as_u64).is_some_and(|n| n > 1))
        {
            return Err(json.error(format!("key `{key}`: mixtures of experts within a base are not supported")));
        }
        ensure_readable(json)?;
        ensure_causal(json)?;
        (architecture.read)(json)
    }
}

/// Refuses bases with bidirectional attention.
fn ensure_causal(json: &ConfigKeys) -> Result<()> {
    for part in [Some(json.clone()), json.nested("text_config").ok().flatten()].iter().flatten() {
        // As in transformers, null is not true.
        if part.has_key("is_causal") && !part.flag("is_causal", false)? {
            return Err(json.error("key `is_causal` is not true; lorakit has causal attention only"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_are_those_of_all_architectures() {
        assert_eq!(module_names(SiteRole::AttentionInput), ["q_proj", "k_proj", "v_proj", "qkv_proj", "q", "k", "v"]);
        assert_eq!(module_names(SiteRole::AttentionOutput), ["o_proj", "dense", "o"]);
        let mlp_input = ["gate_proj", "up_proj", "fc1", "gate_up_proj", "input_linear", "wi_0", "wi_1"];
        assert_eq!(module_names(SiteRole::MlpInput), mlp_input);
        assert_eq!(module_names(SiteRole::MlpOutput), ["down_proj", "fc2", "output_linear", "wo"]);
    }
}
