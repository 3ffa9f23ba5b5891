//! The files of a model folder beside its weights: configuration and tokenizer.

use crate::base::pico;
use crate::base::resolved_base::ResolvedBase;
use anyhow::{Context as _, Result, ensure};
use lorakit_format::atomic::write_file;
use serde_json::Value;
use std::path::Path;

/// The files that go with weights to another folder.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
];

/// Writes the companions of a base's weights into `folder`, which exists.
pub fn write(place: &ResolvedBase, folder: &Path) -> Result<()> {
    let ResolvedBase::Folder { folder: source, .. } = place else { return pico::write_companions(folder) };
    for name in COMPANIONS.iter().filter(|name| source.join(name).is_file()) {
        std::fs::copy(source.join(name), folder.join(name))
            .with_context(|| format!("{}: cannot be copied", source.join(name).display()))?;
    }
    ensure!(folder.join("config.json").is_file(), "{}: no config.json", source.display());
    Ok(())
}

/// The same for weights in f32, which other tools would round to the type that config.json names.
pub fn write_for_f32(place: &ResolvedBase, folder: &Path) -> Result<()> {
    write(place, folder)?;
    name_f32(&folder.join("config.json"))
}

/// Names f32 as the type of the weights, where config.json names one.
fn name_f32(path: &Path) -> Result<()> {
    let text = lorakit_format::read_text(path)?;
    let mut config: Value = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let keys = ["torch_dtype", "dtype"];
    let Some(object) = config.as_object_mut().filter(|object| keys.iter().any(|key| object.contains_key(*key))) else {
        return Ok(());
    };
    for key in keys {
        if let Some(dtype) = object.get_mut(key) {
            *dtype = "float32".into();
        }
    }
    Ok(write_file(path, format!("{config:#}\n").as_bytes())?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_config_that_names_a_type_names_f32_and_keeps_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, r#"{"rope_theta": 1e6, "torch_dtype": "bfloat16", "a": [1]}"#).unwrap();
        name_f32(&path).unwrap();
        let config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(config, serde_json::json!({"rope_theta": 1e6, "torch_dtype": "float32", "a": [1]}));
        std::fs::write(&path, "{\"a\":1}").unwrap();
        name_f32(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}");
    }
}
