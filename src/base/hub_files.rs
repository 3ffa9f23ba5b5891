//! The files of a base on the Hub: configuration, tokenizer, license, and weights in safetensors. Many repositories hold
//! the same weights again in other formats.

use crate::base::adapter_folder::not_a_base;
use crate::base::model_files::is_model_file;
use crate::hub::repository::Repository;
use crate::hub::snapshot::{NeededFiles, RemoteSnapshot};
use anyhow::{Context as _, Result, bail};
use lorakit_adapter::CONFIG_FILE;
use lorakit_format::gguf::shard_names;
use lorakit_model::weights::{INDEX_FILE, SINGLE_FILE};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// The files of a base.
pub struct BaseFiles<'a> {
    /// Its repository as typed, for messages.
    pub repository: &'a Repository,
}

impl NeededFiles for BaseFiles<'_> {
    fn download(&self, remote: &RemoteSnapshot<'_>) -> Result<()> {
        let files: Vec<&str> = remote.info.files().collect();
        let has_weights = files.contains(&SINGLE_FILE) || files.contains(&INDEX_FILE);
        // It may hold several quantizations of one model.
        if let Some(file) = files.iter().filter(|file| file.ends_with(".gguf")).min().filter(|_| !has_weights) {
            bail!("its weights are in GGUF; name one file: --base {}/{file}", self.repository);
        }
        if files.contains(&CONFIG_FILE) && !has_weights {
            let config = remote.get(CONFIG_FILE)?;
            bail!("{}: {}", self.repository, not_a_base(config.parent().unwrap_or(&config)));
        }
        for file in files.iter().filter(|file| is_model_file(file)) {
            remote.get(file)?;
        }
        if files.contains(&SINGLE_FILE) {
            remote.get(SINGLE_FILE)?;
        } else if files.contains(&INDEX_FILE) {
            for shard in shards(&remote.get(INDEX_FILE)?)? {
                remote.get(&shard)?;
            }
        }
        Ok(())
    }

    fn missing(&self, folder: &Path) -> Option<String> {
        let lacks = |file: &str| !folder.join(file).exists();
        if lacks("config.json") {
            return Some("config.json".to_owned());
        }
        if !lacks(SINGLE_FILE) {
            return None;
        }
        match shards(&folder.join(INDEX_FILE)) {
            Err(_) => Some(format!("weights in safetensors ({SINGLE_FILE}, or {INDEX_FILE} with its files)")),
            Ok(shards) => shards.into_iter().find(|shard| lacks(shard)),
        }
    }

    /// Other programs may have fetched the weights alone.
    fn suffices(&self, folder: &Path) -> bool {
        self.missing(folder).is_none() && folder.join("tokenizer.json").exists()
    }
}

/// A GGUF file of a repository, with the others that the model is split into, and the tokenizer and license beside it.
pub struct GgufFiles {
    /// The paths of the model's files within the repository.
    shards: Vec<String>,
}

impl GgufFiles {
    /// The files of the model that `file`, a path within the repository, is of.
    pub fn of(file: &str) -> Self {
        Self { shards: shard_names(file).unwrap_or_else(|| vec![file.to_owned()]) }
    }
}

impl NeededFiles for GgufFiles {
    fn download(&self, remote: &RemoteSnapshot<'_>) -> Result<()> {
        let is_shard = |file: &str| self.shards.iter().any(|shard| shard == file);
        let files: Vec<&str> = remote.info.files().filter(|file| is_model_file(file) || is_shard(file)).collect();
        files.into_iter().try_for_each(|file| remote.get(file).map(|_| ()))
    }

    fn missing(&self, folder: &Path) -> Option<String> {
        self.shards.iter().find(|shard| !folder.join(shard).exists()).cloned()
    }
}

/// The files that an index of sharded weights lists.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let text = lorakit_format::read_text(index)?;
    let index: Value = serde_json::from_str(&text).with_context(|| index.display().to_string())?;
    let names = index["weight_map"].as_object().into_iter().flat_map(|map| map.values());
    Ok(names.filter_map(Value::as_str).map(str::to_owned).collect())
}
