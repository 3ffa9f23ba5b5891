//! Downloads of bases from the Hugging Face Hub.

use crate::command_context::CommandContext;
use anyhow::{Context as _, Result};
use hf_hub::api::sync::{ApiBuilder, ApiRepo};
use hf_hub::{Cache, Repo};
use std::path::PathBuf;

/// Downloads the files of a base into the cache that `huggingface_hub` uses, and returns their folder.
pub fn fetch(repo: &Repo, context: &CommandContext) -> Result<PathBuf> {
    let api = ApiBuilder::from_env().with_progress(!context.output.quiet).build()?.repo(repo.clone());
    let files = match api.info() {
        Ok(info) => info.siblings.into_iter().map(|file| file.rfilename).filter(|name| is_base_file(name)).collect(),
        Err(error) => {
            return cached(repo).with_context(|| {
                format!(
                    "the Hub cannot be reached ({error}), and its cache has no copy; check the name and the connection"
                )
            });
        }
    };
    download(&api, files)
}

fn download(api: &ApiRepo, files: Vec<String>) -> Result<PathBuf> {
    let mut folder = None;
    for name in files {
        let path = api.get(&name).with_context(|| format!("{name}: cannot be downloaded"))?;
        if name == "config.json" {
            folder = path.parent().map(PathBuf::from);
        }
    }
    folder.context("the repository has no config.json; is it a model?")
}

/// The folder of an earlier download.
fn cached(repo: &Repo) -> Option<PathBuf> {
    Some(Cache::from_env().repo(repo.clone()).get("config.json")?.parent()?.to_owned())
}

/// Whether a file of a repository is needed: configuration, tokenizer, and weights in safetensors. Many repositories
/// hold the same weights again in other formats.
fn is_base_file(name: &str) -> bool {
    let weights = || {
        name == "model.safetensors"
            || name == "model.safetensors.index.json"
            || (name.starts_with("model-") && name.ends_with(".safetensors"))
    };
    matches!(
        name,
        "config.json"
            | "generation_config.json"
            | "tokenizer.json"
            | "tokenizer_config.json"
            | "special_tokens_map.json"
    ) || weights()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_not_downloaded() {
        assert!(["config.json", "model.safetensors", "model-00001-of-00002.safetensors"].into_iter().all(is_base_file));
        assert!(
            !["pytorch_model.bin", "consolidated.safetensors", "onnx/model.onnx", "README.md"]
                .into_iter()
                .any(is_base_file)
        );
    }
}
