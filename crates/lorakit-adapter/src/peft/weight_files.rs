//! Where the weights of an adapter folder are: one file or several shards, safetensors or pickles.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use lorakit_format::read_text;
use serde::Deserialize;

use crate::error::{AdapterError, Result, Within};
use crate::import::peft_pickle::pickled_tensors;
use crate::peft::adapter_files::{PICKLE_FILE, WEIGHTS_FILE};
use crate::peft::adapter_tensor::{AdapterTensor, map_tensors};

/// The weights of an adapter folder, in the order of their names.
#[derive(Debug)]
pub(crate) enum PeftWeightFiles {
    /// Safetensors files.
    Safetensors(Vec<PathBuf>),
    /// Files of torch.save.
    Pickle(Vec<PathBuf>),
}

/// The index of shards, as transformers writes it.
#[derive(Deserialize)]
struct ShardIndex {
    /// The file of each tensor.
    weight_map: BTreeMap<String, String>,
}

impl PeftWeightFiles {
    /// The weights in `dir`: safetensors before pickles, as in PEFT, and a whole file before shards.
    ///
    /// # Errors
    /// If there are none, or a shard is missing.
    pub(crate) fn find(dir: &Path) -> Result<Self> {
        if let Some(files) = files_of(dir, WEIGHTS_FILE)? {
            return Ok(Self::Safetensors(files));
        }
        if let Some(files) = files_of(dir, PICKLE_FILE)? {
            return Ok(Self::Pickle(files));
        }
        Err(AdapterError::AdapterFolder(format!(
            "{}: no {WEIGHTS_FILE}; expected the folder that PEFT's save_pretrained wrote",
            dir.display()
        )))
    }

    /// Their tensors. Those of safetensors files are mapped; those of a pickle, nothing of which is executed, are copied
    /// into memory.
    ///
    /// # Errors
    /// If a file cannot be read; the error names it.
    pub(crate) fn tensors(&self) -> Result<Vec<AdapterTensor>> {
        let mut tensors = Vec::new();
        match self {
            Self::Safetensors(files) => {
                for file in files {
                    tensors.extend(map_tensors(file)?);
                }
            }
            Self::Pickle(files) => {
                for file in files {
                    let owned = pickled_tensors(file).within_file(file)?;
                    tensors.extend(
                        owned.into_iter().map(|(key, (shape, values))| AdapterTensor::owned(key, shape, values)),
                    );
                }
            }
        }
        Ok(tensors)
    }

    /// What messages call them: the file, or the folder `dir` of its shards.
    pub(crate) fn place<'a>(&'a self, dir: &'a Path) -> &'a Path {
        let (Self::Safetensors(files) | Self::Pickle(files)) = self;
        if let [file] = &files[..] { file } else { dir }
    }
}

/// The file `name` of `dir`, or the shards that it was split into: those of its index, or all that are numbered as its
/// parts.
fn files_of(dir: &Path, name: &str) -> Result<Option<Vec<PathBuf>>> {
    if dir.join(name).is_file() {
        return Ok(Some(vec![dir.join(name)]));
    }
    let index = dir.join(format!("{name}.index.json"));
    let shards: BTreeSet<String> = if index.is_file() { shards_of_index(&index)? } else { numbered_shards(dir, name)? };
    if shards.is_empty() {
        return Ok(None);
    }
    let file = |shard: String| {
        let path = dir.join(&shard);
        // A name with separators would lead out of the folder.
        match Path::new(&shard).file_name().is_some_and(|name| name == shard.as_str()) && path.is_file() {
            true => Ok(path),
            false => Err(AdapterError::AdapterFolder(format!(
                "{}: the shard `{shard}` of {name} is missing; the folder is incomplete",
                dir.display()
            ))),
        }
    };
    shards.into_iter().map(file).collect::<Result<Vec<_>>>().map(Some)
}

/// The names of the files that an index lists.
fn shards_of_index(index: &Path) -> Result<BTreeSet<String>> {
    let parsed = serde_json::from_str::<ShardIndex>(&read_text(index)?);
    let parsed = parsed.map_err(|error| {
        AdapterError::AdapterFolder(format!("{}: not an index of shards with a weight_map: {error}", index.display()))
    })?;
    Ok(parsed.weight_map.into_values().collect())
}

/// The names of all parts of `name`, as `adapter_model-00001-of-00002.bin`, if there is any.
fn numbered_shards(dir: &Path, name: &str) -> Result<BTreeSet<String>> {
    let Some((stem, extension)) = name.rsplit_once('.') else { return Ok(BTreeSet::new()) };
    let count = |file: &str| -> Option<usize> {
        let part = file.strip_prefix(stem)?.strip_prefix('-')?.strip_suffix(extension)?.strip_suffix('.')?;
        part.split_once("-of-")?.1.parse().ok()
    };
    let entries = fs::read_dir(dir).within_file(dir)?;
    let counts = entries.flatten().filter_map(|entry| count(entry.file_name().to_str()?));
    // A folder of many files: the largest count is that of a complete set.
    let Some(total) = counts.max().filter(|total| *total < 100_000) else { return Ok(BTreeSet::new()) };
    Ok((1..=total).map(|part| format!("{stem}-{part:05}-of-{total:05}.{extension}")).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn found(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.path().join(name), text).unwrap());
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        match PeftWeightFiles::find(folder.path()).map_err(|error| error.chain())? {
            PeftWeightFiles::Safetensors(paths) | PeftWeightFiles::Pickle(paths) => {
                Ok(paths.iter().map(name).collect())
            }
        }
    }

    #[test]
    fn whole_files_come_before_shards_and_safetensors_before_pickles() {
        let index = r#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors", "c": "one.safetensors"}}"#;
        let shards =
            [("one.safetensors", ""), ("two.safetensors", ""), ("adapter_model.safetensors.index.json", index)];
        assert_eq!(found(&shards).unwrap(), ["one.safetensors", "two.safetensors"]);
        let mut whole = shards.to_vec();
        whole.extend([(WEIGHTS_FILE, ""), (PICKLE_FILE, "")]);
        assert_eq!(found(&whole).unwrap(), [WEIGHTS_FILE]);
        let numbered = [("adapter_model-00001-of-00002.bin", ""), ("adapter_model-00002-of-00002.bin", "")];
        assert_eq!(found(&numbered).unwrap(), numbered.map(|(name, _)| name));
    }

    #[test]
    fn missing_shards_and_names_outside_of_the_folder_are_errors() {
        assert!(found(&[("adapter_model-00002-of-00002.bin", "")]).unwrap_err().contains("00001-of-00002"));
        let index = r#"{"weight_map": {"a": "../one.safetensors"}}"#;
        assert!(found(&[("adapter_model.safetensors.index.json", index)]).unwrap_err().contains("../one"));
        assert!(found(&[("config.json", "")]).unwrap_err().contains("save_pretrained"));
    }
}
