//! The list of architectures, and reading a config by its `model_type`.

use crate::architecture::base_config::{Architecture, BaseConfig};
use crate::architecture::config_keys::ConfigKeys;
use crate::architecture::{llama, mistral, phi};
use crate::error::{ModelError, Result};
use lorakit_format::read_text;
use lorakit_lora::SiteRole;
use std::path::Path;

/// All architectures.
pub static ARCHITECTURES: &[&Architecture] = &[&mistral::MISTRAL, &llama::LLAMA, &phi::PHI];

/// The last names of the modules that have `role` in any architecture, each once, as `q_proj`.
pub fn module_names(role: SiteRole) -> Vec<&'static str> {
    let mut names = Vec::new();
    let sites = ARCHITECTURES.iter().flat_map(|architecture| architecture.descriptor.sites());
    for projection in sites.filter(|(of, _)| *of == role).flat_map(|(_, site)| site.projections) {
        let name = projection.module.rsplit('.').next().unwrap_or(projection.module);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
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
        let json = ConfigKeys::parse(text, file)?;
        let model_type = json.text("model_type").ok_or_else(|| json.error("key 'model_type' is missing"))?;
        let Some(architecture) = ARCHITECTURES.iter().find(|known| known.model_type == model_type) else {
            let known: Vec<&str> = ARCHITECTURES.iter().map(|known| known.model_type).collect();
            return Err(json.error(format!("key 'model_type' is '{model_type}'; supported are {}", known.join(", "))));
        };
        if json.get("quantization_config").is_some() {
            return Err(
                json.error("key 'quantization_config': quantized bases are not supported; use the unquantized weights")
            );
        }
        (architecture.read)(&json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_names_are_those_of_all_architectures() {
        assert_eq!(module_names(SiteRole::AttentionInput), ["q_proj", "k_proj", "v_proj"]);
        assert_eq!(module_names(SiteRole::AttentionOutput), ["o_proj", "dense"]);
        assert_eq!(module_names(SiteRole::MlpInput), ["gate_proj", "up_proj", "fc1"]);
        assert_eq!(module_names(SiteRole::MlpOutput), ["down_proj", "fc2"]);
    }
}
