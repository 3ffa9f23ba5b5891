//! The files of a model folder other than its weights: configuration, tokenizer, license.

use crate::base::pico;
use crate::base::resolved_base::ResolvedBase;
use anyhow::{Context as _, Result, ensure};
use lorakit_format::atomic::write_file;
use lorakit_format::non_finite_json::{NON_FINITE, replace_non_finite};
use lorakit_model::architecture::{QUANTIZATION_CONFIG, gguf_config_json};
use lorakit_task::gguf_tokenizer_files;
use serde_json::Value;
use std::path::Path;

/// The files of a model folder other than its weights.
const MODEL_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// The folder of chat templates other than the default.
const MORE_TEMPLATES: &str = "additional_chat_templates";

/// The beginnings of the names of licenses and of what they ask to be kept, in lower case.
const LICENSES: &[&str] = &["license", "licence", "copying", "notice", "use_policy"];

/// Whether a file of a model folder is copied and downloaded along with its weights, by its path within the folder.
pub fn is_model_file(path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    match folder {
        "" => {
            let lower = name.to_lowercase();
            MODEL_FILES.contains(&name) || LICENSES.iter().any(|license| lower.starts_with(license))
        }
        MORE_TEMPLATES => name.ends_with(".jinja"),
        _ => false,
    }
}

/// Copies the files of a base, other than its weights, to `folder`, which exists.
pub fn write(resolved: &ResolvedBase, folder: &Path) -> Result<()> {
    match resolved {
        ResolvedBase::Folder { folder: source, .. } => {
            copy(source, folder)?;
            let config = folder.join("config.json");
            ensure!(config.is_file(), "{}: no config.json", source.display());
            // The weights that are written are not quantized.
            without_key(&config, QUANTIZATION_CONFIG)
        }
        ResolvedBase::Gguf(base) => {
            match base.tokenizer_folder() {
                Some(source) => copy(source, folder)?,
                None => {
                    for (name, content) in gguf_tokenizer_files(base.shards()?.metadata())? {
                        write_file(&folder.join(name), content.as_bytes())?;
                    }
                }
            }
            let config = gguf_config_json(&base.shards()?)?;
            Ok(write_file(&folder.join("config.json"), format!("{config:#}\n").as_bytes())?)
        }
        ResolvedBase::Pico => pico::write_model_files(folder),
    }
}

/// Copies the model files of a folder to another one.
fn copy(source: &Path, folder: &Path) -> Result<()> {
    for path in model_files(source)? {
        let (from, to) = (source.join(&path), folder.join(&path));
        let copy = || -> Result<()> {
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent)?;
            }
            // Synced to disk, as all of a folder must be that is renamed when it is complete.
            Ok(write_file(&to, &std::fs::read(&from)?)?)
        };
        copy().with_context(|| format!("{}: cannot be copied", from.display()))?;
    }
    Ok(())
}

/// The paths of a folder's model files within it.
fn model_files(folder: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for within in ["", MORE_TEMPLATES] {
        let Ok(entries) = std::fs::read_dir(folder.join(within)) else { continue };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            paths.push(if within.is_empty() { name } else { format!("{within}/{name}") });
        }
    }
    paths.retain(|path| is_model_file(path) && folder.join(path).is_file());
    paths.sort();
    Ok(paths)
}

/// Copies the same files for weights in f32: config.json then names f32, which other tools would otherwise round to the
/// original type.
pub fn write_for_f32(resolved: &ResolvedBase, folder: &Path) -> Result<()> {
    write(resolved, folder)?;
    set_dtype_f32(&folder.join("config.json"))
}

/// Removes a key from config.json, if it has it.
fn without_key(path: &Path, key: &str) -> Result<()> {
    if !lorakit_format::read_text(path)?.contains(key) {
        return Ok(());
    }
    let mut config = read_config(path)?;
    match config.as_object_mut().and_then(|object| object.shift_remove(key)) {
        Some(_) => write_config(path, &config),
        None => Ok(()),
    }
}

/// Says in a config.json that the head's weight is not the embedding's; in that of a multimodal model also of its text
/// model. The logits of a T5 are scaled where nothing else is said and its head is tied: they stay so.
pub fn untie(path: &Path) -> Result<()> {
    const KEY: &str = "tie_word_embeddings";
    let mut config = read_config(path)?;
    config[KEY] = false.into();
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
        text.insert(KEY.to_owned(), false.into());
    }
    if let Some(keys) = config.as_object_mut().filter(|keys| keys.get("model_type") == Some(&"t5".into())) {
        keys.entry("scale_decoder_outputs").or_insert(true.into());
    }
    write_config(path, &config)
}

/// Before the name of a number that only Python's JSON has, while a config is changed: a text stands for it.
const NOT_FINITE: &str = "number that is not finite: ";

/// Reads a config to change it.
fn read_config(path: &Path) -> Result<Value> {
    let text = lorakit_format::read_text(path)?;
    let json = replace_non_finite(text.as_bytes(), |number| format!("\"{NOT_FINITE}{number}\""));
    let config: Value = serde_json::from_slice(&json).with_context(|| path.display().to_string())?;
    ensure!(config.is_object(), "{}: expected an object", path.display());
    Ok(config)
}

/// Writes a config that was read by [`read_config`].
fn write_config(path: &Path, config: &Value) -> Result<()> {
    let text = NON_FINITE
        .iter()
        .fold(format!("{config:#}\n"), |text, number| text.replace(&format!("\"{NOT_FINITE}{number}\""), number));
    Ok(write_file(path, text.as_bytes())?)
}

/// Sets the data type in config.json to f32, if it has one.
fn set_dtype_f32(path: &Path) -> Result<()> {
    let mut config = read_config(path)?;
    let keys = ["torch_dtype", "dtype"];
    let Some(object) = config.as_object_mut().filter(|object| keys.iter().any(|key| object.contains_key(*key))) else {
        return Ok(());
    };
    for key in keys {
        if let Some(dtype) = object.get_mut(key) {
            *dtype = "float32".into();
        }
    }
    write_config(path, &config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::output::console::Output;

    #[test]
    fn files_other_than_weights_are_kept() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(from.path().join(MORE_TEMPLATES)).unwrap();
        let kept = [
            "config.json",
            "tokenizer.json",
            "added_tokens.json",
            "chat_template.jinja",
            "generation_config.json",
            "LICENSE.txt",
            "Notice",
            "additional_chat_templates/tool_use.jinja",
        ];
        let left = ["model.safetensors", "pytorch_model.bin", "README.md", "additional_chat_templates/README.md"];
        for file in kept.iter().chain(&left) {
            std::fs::write(from.path().join(file), file).unwrap();
        }
        let output = Output { json: false, quiet: true, verbose: false };
        write(&ResolvedBase::Folder { folder: from.path().to_owned(), name: None, output }, to.path()).unwrap();
        assert!(kept.iter().all(|file| std::fs::read_to_string(to.path().join(file)).unwrap() == *file));
        assert!(!left.iter().any(|file| to.path().join(file).exists()));
    }

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

    #[test]
    fn numbers_that_only_python_reads_stay_in_a_config() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, r#"{"a": [0.0, Infinity, -Infinity], "b": NaN, "c": "NaN", "dtype": "bfloat16"}"#)
            .unwrap();
        set_dtype_f32(&path).unwrap();
        without_key(&path, "b").unwrap();
        let text: String = std::fs::read_to_string(&path).unwrap().split_whitespace().collect();
        assert_eq!(text, r#"{"a":[0.0,Infinity,-Infinity],"c":"NaN","dtype":"float32"}"#);
    }

    #[test]
    fn a_config_is_untied_also_where_it_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        for (config, untied) in [
            (r#"{"a":1}"#, serde_json::json!({"a": 1, "tie_word_embeddings": false})),
            (
                r#"{"tie_word_embeddings":true,"text_config":{}}"#,
                serde_json::json!({"tie_word_embeddings": false, "text_config": {"tie_word_embeddings": false}}),
            ),
            (
                r#"{"model_type":"t5"}"#,
                serde_json::json!(
                    {"model_type": "t5", "tie_word_embeddings": false, "scale_decoder_outputs": true}
                ),
            ),
            (
                r#"{"model_type":"t5","scale_decoder_outputs":false}"#,
                serde_json::json!(
                    {"model_type": "t5", "scale_decoder_outputs": false, "tie_word_embeddings": false}
                ),
            ),
        ] {
            std::fs::write(&path, config).unwrap();
            untie(&path).unwrap();
            assert_eq!(read_config(&path).unwrap(), untied);
        }
    }
}
