//! The files of a model folder other than its weights: configuration, tokenizer, license.

use crate::base::pico;
use crate::base::resolved_base::ResolvedBase;
use anyhow::{Context as _, Result, ensure};
use lorakit_format::atomic::write_file;
use serde_json::Value;
use std::path::Path;

/// The files that are copied along with weights.
const MODEL_FILES: &[&str] = &[
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

/// Copies the files of a base, other than its weights, to `folder`, which exists.
pub fn write(place: &ResolvedBase, folder: &Path) -> Result<()> {
    let ResolvedBase::Folder { folder: source, .. } = place else { return pico::write_model_files(folder) };
    for name in MODEL_FILES.iter().filter(|name| source.join(name).is_file()) {
        std::fs::copy(source.join(name), folder.join(name))
            .with_context(|| format!("{}: cannot be copied", source.join(name).display()))?;
    }
    ensure!(folder.join("config.json").is_file(), "{}: no config.json", source.display());
    Ok(())
}

/// Copies the same files for weights in f32: config.json then names f32, which other tools would otherwise round to the
/// original type.
pub fn write_for_f32(place: &ResolvedBase, folder: &Path) -> Result<()> {
    write(place, folder)?;
    set_dtype_f32(&folder.join("config.json"))
}

/// Sets the data type in config.json to f32, if it has one.
fn set_dtype_f32(path: &Path) -> Result<()> {
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
    fn only_the_data_type_of_a_config_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, r#"{"rope_theta": 1e6, "torch_dtype": "bfloat16", "a": [1]}"#).unwrap();
        set_dtype_f32(&path).unwrap();
        let config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(config, serde_json::json!({"rope_theta": 1e6, "torch_dtype": "float32", "a": [1]}));
        std::fs::write(&path, "{\"a\":1}").unwrap();
        set_dtype_f32(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"a\":1}");
    }
}
