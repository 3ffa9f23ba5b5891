//! The tensors of a model in GGUF, by the names of Hugging Face's model and with its order of rows.

use crate::architecture::base_config::BaseConfig;
use crate::architecture::gguf::gguf_config::architecture_of;
use crate::architecture::gguf::gguf_keys::GgufKeys;
use crate::architecture::gguf::gguf_tensor_names::{GgufTensorName, tensor_names};
use crate::error::{ModelError, Result};
use crate::weights::block_quantization::BlockType;
use crate::weights::mmap_matrix::MmapMatrix;
use crate::weights::storage_dtype::StorageDtype;
use lorakit_adapter::llama_cpp_row_order;
use lorakit_format::gguf::{GgmlType, GgufEntry, GgufFile, GgufShards};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Tensors that are read as part of the configuration.
const CONFIG_TENSORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// How many blocks of each tensor [`GgufWeights::hash_into`] reads, and how long they are in bytes.
const SAMPLED_BLOCKS: usize = 3;
const SAMPLED_BLOCK_BYTES: usize = 4096;

/// The tensors of a model in GGUF.
pub(crate) struct GgufWeights {
    shards: GgufShards,
    /// The index of the file and the two names of each tensor, by its name in Hugging Face's model.
    places: BTreeMap<String, (usize, GgufTensorName)>,
    /// Rows of a head, if those of queries and keys are reordered.
    reordered_head: Option<usize>,
}

/// A tensor of a model in GGUF.
#[derive(Clone, Copy)]
pub(crate) struct GgufTensorRef<'a> {
    weights: &'a GgufWeights,
    name: &'a GgufTensorName,
    /// The file that it is in.
    pub(crate) file: &'a GgufFile,
    /// How it is stored.
    pub(crate) entry: &'a GgufEntry,
}

impl GgufWeights {
    /// Finds the tensors of a model.
    ///
    /// # Errors
    /// If the file's architecture is not supported, or a tensor has no place in it.
    pub(crate) fn new(shards: GgufShards) -> Result<Self> {
        let config = BaseConfig::of_gguf(&shards)?;
        let interleaved = architecture_of(&GgufKeys::new(&shards)?)?.1.interleaved;
        let files: BTreeMap<&str, usize> = shards
            .files()
            .iter()
            .enumerate()
            .flat_map(|(index, file)| file.tensors().keys().map(move |name| (name.as_str(), index)))
            .collect();
        let mut places = BTreeMap::new();
        let mut used: BTreeSet<&str> = CONFIG_TENSORS.into();
        let names = tensor_names(&config);
        for name in &names {
            used.insert(&name.llama_cpp);
            if let Some(&file) = files.get(name.llama_cpp.as_str()) {
                places.insert(name.hugging_face.clone(), (file, name.clone()));
            }
        }
        if let Some((unknown, &file)) = files.iter().find(|(name, _)| !used.contains(*name)) {
            let reason = format!("has no place in a model of the architecture `{}`", config.model_type);
            return Err(tensor_error(shards.files()[file].path(), unknown, reason));
        }
        Ok(Self { shards, places, reordered_head: interleaved.then_some(config.head_dim) })
    }

    /// The files.
    pub(crate) fn shards(&self) -> &GgufShards {
        &self.shards
    }

    /// The names of all tensors in Hugging Face's model.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// A tensor by its name in Hugging Face's model.
    pub(crate) fn find(&self, name: &str) -> Option<(&str, GgufTensorRef<'_>)> {
        let (key, (file, name)) = self.places.get_key_value(name)?;
        let file = &self.shards.files()[*file];
        Some((key.as_str(), GgufTensorRef { weights: self, name, file, entry: file.tensors().get(&name.llama_cpp)? }))
    }

    /// Adds all that tells its weights from others to a hash: each tensor's name, type, shape and some of its blocks. How
    /// many files it is in, or which chat template it has, makes no difference.
    pub(crate) fn hash_into(&self, hash: &mut Sha256) {
        for (_, tensor) in self.names().filter_map(|name| self.find(name)) {
            let GgufEntry { dtype, shape, bytes } = tensor.entry;
            hash.update(format!("{} {dtype} {shape:?}\n", tensor.name.llama_cpp));
            for block in 0..SAMPLED_BLOCKS {
                let start = bytes.start + bytes.len() / SAMPLED_BLOCKS * block;
                hash.update(&tensor.file.bytes()[start..(start + SAMPLED_BLOCK_BYTES).min(bytes.end)]);
            }
        }
    }
}

impl GgufTensorRef<'_> {
    /// Its values as a matrix `[rows, columns]`, or as one row; they stay in the file unless there are few.
    ///
    /// # Errors
    /// If its type is not supported.
    pub(crate) fn matrix(&self, rows: usize, columns: usize) -> Result<MmapMatrix> {
        let GgufEntry { dtype, shape, bytes } = self.entry;
        let matrix = match (plain_dtype(*dtype), BlockType::from_ggml(dtype.number)) {
            (Some(plain), _) => MmapMatrix::new(self.file.bytes().clone(), bytes.clone(), plain, rows, columns)?,
            (None, Some(blocks)) => {
                MmapMatrix::of_blocks(self.file.bytes().clone(), bytes.clone(), blocks, rows, columns)?
            }
            (None, None) => {
                let known = BlockType::ALL.map(BlockType::name).join(", ");
                return Err(self.error(format!("is {dtype}; lorakit reads F32, F16, BF16, {known}")));
            }
        };
        let head = self.weights.reordered_head.filter(|_| self.name.rotated);
        match (head.map(|head| self.row_order(head)).transpose()?, shape.len()) {
            (Some(order), 1) => {
                let values = matrix.values();
                MmapMatrix::from_values(order.into_iter().map(|value| values[value]).collect(), rows, columns)
            }
            (Some(order), _) => Ok(matrix.with_row_order(order.into_iter().map(|row| row as u32).collect())),
            _ if self.name.plus_one => {
                MmapMatrix::from_values(matrix.values().iter().map(|value| value - 1.0).collect(), rows, columns)
            }
            _ => Ok(matrix),
        }
    }

    /// Where each of its rows is, in heads of `head` rows.
    fn row_order(&self, head: usize) -> Result<Vec<usize>> {
        let rows = self.entry.shape[0];
        let heads = rows.checked_div(head).filter(|heads| heads * head == rows);
        let order = heads.and_then(|heads| llama_cpp_row_order(rows, heads).ok());
        order.ok_or_else(|| self.error(format!("has {rows} rows, expected heads of {head}")))
    }

    /// The type in which its values can be written without loss.
    pub(crate) fn storage_dtype(&self) -> StorageDtype {
        plain_dtype(self.entry.dtype).unwrap_or(StorageDtype::F32)
    }

    /// An error about it.
    pub(crate) fn error(&self, reason: impl Into<String>) -> ModelError {
        tensor_error(self.file.path(), &self.name.llama_cpp, reason)
    }
}

/// The type of a tensor that is not quantized, if it can be read.
fn plain_dtype(dtype: GgmlType) -> Option<StorageDtype> {
    match dtype {
        GgmlType::F32 => Some(StorageDtype::F32),
        GgmlType::F16 => Some(StorageDtype::F16),
        GgmlType::BF16 => Some(StorageDtype::BF16),
        _ => None,
    }
}

fn tensor_error(file: &Path, name: &str, reason: impl Into<String>) -> ModelError {
    ModelError::Tensor { place: file.display().to_string(), tensor: name.to_owned(), reason: reason.into() }
}
