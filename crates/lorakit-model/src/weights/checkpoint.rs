//! The safetensors files of a model folder, memory-mapped and never copied.

use crate::error::{ModelError, Result};
use crate::weights::mmap_matrix::MmapMatrix;
use crate::weights::storage_dtype::StorageDtype;
use lorakit_format::hash::hex;
use lorakit_format::mmap::FileBytes;
use lorakit_format::read_text;
use lorakit_format::safetensors::{SafetensorsFile, TensorEntry};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The name of the weight file of a model that is not split.
pub(crate) const SINGLE_FILE: &str = "model.safetensors";

/// The name of the file that says which tensor is in which file of a split model.
const INDEX_FILE: &str = "model.safetensors.index.json";

/// How many blocks of each file [`Checkpoint::sampled_hash`] reads, and how long they are in bytes.
const SAMPLED_BLOCKS: usize = 64;
const SAMPLED_BLOCK_BYTES: usize = 4096;

/// Prefixes of names in files of before transformers 4.52, and of the same names since.
const RENAMED: [(&str, &str); 2] =
    [("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head.")];

/// Where a tensor is.
struct Place {
    /// The index of its file.
    file: usize,
    /// Its name there.
    stored: String,
}

/// All tensors of a base by name.
pub struct Checkpoint {
    pub(crate) files: Vec<SafetensorsFile>,
    /// Where each tensor is, by the name that transformers 5 has for it.
    names: BTreeMap<String, Place>,
    /// Matrices that replace those of the files.
    pub(crate) edited: BTreeMap<String, MmapMatrix>,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the files that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// If the folder has neither, or a file is not a complete safetensors file.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = folder.join(INDEX_FILE);
        let single = folder.join(SINGLE_FILE);
        let error =
            |reason: &str| ModelError::Checkpoint { place: folder.display().to_string(), reason: reason.to_owned() };
        let paths = if single.exists() {
            vec![single]
        } else if index.exists() {
            indexed_files(folder, &index)?
        } else if folder.join("pytorch_model.bin").exists() || folder.join("pytorch_model.bin.index.json").exists() {
            return Err(error(
                "the weights are pickles (.bin), which lorakit does not execute; save the model with safetensors",
            ));
        } else {
            return Err(error("neither model.safetensors nor model.safetensors.index.json is there"));
        };
        let files = paths.iter().map(|path| SafetensorsFile::open(path)).collect::<std::result::Result<_, _>>()?;
        Self::of(files)
    }

    /// A base whose one safetensors file is in memory; errors name it as `name`.
    ///
    /// # Errors
    /// If it is not a complete safetensors file.
    pub fn from_bytes(name: &str, bytes: FileBytes) -> Result<Self> {
        Self::of(vec![SafetensorsFile::from_bytes(name, bytes)?])
    }

    fn of(files: Vec<SafetensorsFile>) -> Result<Self> {
        let mut names = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for stored in file.tensors().keys() {
                let place = Place { file: index, stored: stored.clone() };
                if let Some(other) = names.insert(present_name(stored), place) {
                    let place = files[other.file].path().display();
                    return Err(tensor_error(file, stored, format!("is also in {place}")));
                }
            }
        }
        Ok(Self { files, names, edited: BTreeMap::new() })
    }

    /// A matrix, or a vector as a matrix of one row, by name and shape.
    ///
    /// # Errors
    /// If it is missing, or has another shape or an unsupported type.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<MmapMatrix> {
        let Some((file, entry)) = self.find(name) else {
            let reason = format!("is missing; the config asks for it with shape {shape:?}");
            return Err(ModelError::Tensor { place: self.place(), tensor: name.to_owned(), reason });
        };
        if entry.shape != shape {
            let reason = format!("has shape {:?}, the config asks for {shape:?}", entry.shape);
            return Err(tensor_error(file, name, reason));
        }
        if let Some(edited) = self.edited.get(name) {
            return Ok(edited.clone());
        }
        let dtype = storage_dtype(file, name, entry)?;
        let (rows, columns) = if let [rows, columns] = *shape { (rows, columns) } else { (1, shape.iter().product()) };
        MmapMatrix::new(file.bytes().clone(), entry.bytes.clone(), dtype, rows, columns)
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The file, or the first of several, for messages.
    pub fn place(&self) -> String {
        self.files.first().map_or_else(String::new, |file| file.path().display().to_string())
    }

    /// Total size of the files in bytes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes().len() as u64).sum()
    }

    /// Number of values of all tensors.
    pub fn parameters(&self) -> u64 {
        let entries = self.files.iter().flat_map(|file| file.tensors().values());
        entries.map(|entry| entry.shape.iter().product::<usize>() as u64).sum()
    }

    /// The tensors whose names start with one of `prefixes`: their number of values, and of bytes.
    pub(crate) fn size_of(&self, prefixes: &[&str]) -> (u64, u64) {
        let names = self.names().filter(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
        let entries = names.filter_map(|name| self.find(name)).map(|(_, entry)| entry);
        entries.fold((0, 0), |(values, bytes), entry| {
            (values + entry.shape.iter().product::<usize>() as u64, bytes + entry.bytes.len() as u64)
        })
    }

    /// Whether a matrix is there under both names, with other values.
    ///
    /// # Errors
    /// If one has another shape or an unsupported type.
    pub(crate) fn differ(&self, names: [&str; 2], shape: &[usize]) -> Result<bool> {
        if names.iter().any(|name| self.find(name).is_none()) {
            return Ok(false);
        }
        let [a, b] = [self.get(names[0], shape)?, self.get(names[1], shape)?];
        let (mut of_a, mut of_b) = (vec![0.0; a.columns()], vec![0.0; b.columns()]);
        Ok((0..a.rows()).any(|row| {
            a.copy_row(row, &mut of_a);
            b.copy_row(row, &mut of_b);
            of_a != of_b
        }))
    }

    /// A hash of every header and of 64 blocks of 4 KiB of every file: enough to tell bases apart without reading all
    /// their gigabytes.
    pub fn sampled_hash(&self) -> String {
        let mut hash = Sha256::new();
        for file in &self.files {
            let data = file.data();
            hash.update(file.header());
            hash.update((data.len() as u64).to_le_bytes());
            for i in 0..SAMPLED_BLOCKS {
                let start = data.len() / SAMPLED_BLOCKS * i;
                hash.update(&data[start..(start + SAMPLED_BLOCK_BYTES).min(data.len())]);
            }
        }
        hex(&hash.finalize())
    }

    /// Whether the tensor of that name was edited in memory.
    pub(crate) fn is_edited(&self, name: &str) -> bool {
        self.edited.contains_key(name)
    }

    /// A tensor with its file.
    pub(crate) fn find(&self, name: &str) -> Option<(&SafetensorsFile, &TensorEntry)> {
        let place = self.names.get(name)?;
        let file = &self.files[place.file];
        Some((file, file.tensors().get(&place.stored)?))
    }
}

/// The name that transformers 5 has for a tensor of a file.
pub(crate) fn present_name(stored: &str) -> String {
    let renamed = |(old, new): &(&str, &str)| stored.strip_prefix(old).map(|rest| format!("{new}{rest}"));
    RENAMED.iter().find_map(renamed).unwrap_or_else(|| stored.to_owned())
}

/// The type of a tensor's values, if it can be read.
pub(crate) fn storage_dtype(file: &SafetensorsFile, name: &str, entry: &TensorEntry) -> Result<StorageDtype> {
    StorageDtype::of(entry.dtype)
        .ok_or_else(|| tensor_error(file, name, format!("is {:?}; lorakit reads F32, F16 and BF16", entry.dtype)))
}

/// An error about a tensor of a file.
pub(crate) fn tensor_error(file: &SafetensorsFile, name: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Tensor { place: file.path().display().to_string(), tensor: name.to_owned(), reason: reason.into() }
}

/// The files that an index names, each once, in order of their names.
fn indexed_files(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = serde_json::from_str(&read_text(index)?).map_err(|source| ModelError::Json {
        file: index.display().to_string(),
        expected: "expected an object with 'weight_map'",
        source,
    })?;
    let mut files: Vec<&String> = parsed.weight_map.values().collect();
    files.sort();
    files.dedup();
    files
        .into_iter()
        .map(|file| {
            if Path::new(file).components().count() == 1 && !file.starts_with('.') {
                Ok(folder.join(file))
            } else {
                Err(ModelError::Checkpoint {
                    place: index.display().to_string(),
                    reason: format!("'{file}' is not a plain file name"),
                })
            }
        })
        .collect()
}
