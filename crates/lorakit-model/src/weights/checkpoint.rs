//! The weight files of a base, memory-mapped and never copied: the safetensors files of a model folder, or GGUF.

use crate::error::{ModelError, Result};
use crate::weights::bitsandbytes::{FourBitMatrix, SUFFIXES, described_weight};
use crate::weights::checkpoint_names::CheckpointNames;
use crate::weights::gguf_weights::GgufWeights;
use crate::weights::mmap_matrix::MmapMatrix;
use crate::weights::stored_weight::{StoredWeight, WeightFormat};
use lorakit_adapter::wrapper_prefix;
use lorakit_format::gguf::GgufShards;
use lorakit_format::hash::hex;
use lorakit_format::mmap::FileBytes;
use lorakit_format::read_text;
use lorakit_format::safetensors::{SafetensorsFile, StoredTensor, View as _};
use sha2::{Digest, Sha256};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

/// The name of the weight file of a model that is not split.
pub const SINGLE_FILE: &str = "model.safetensors";

/// The name of the file that says which tensor is in which file of a split model.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// How many blocks of each safetensors file [`Checkpoint::sampled_hash`] reads, and how long they are in bytes.
const SAMPLED_BLOCKS: usize = 64;
const SAMPLED_BLOCK_BYTES: usize = 4096;

/// Where a tensor is in the safetensors files.
pub(crate) struct TensorLocation {
    /// The index of its file.
    pub(crate) file: usize,
    /// Its name there.
    stored: String,
    /// What it and the tensors that describe it are, if it is in 4 bits.
    four_bit: Option<FourBitMatrix>,
}

/// What a checkpoint stores in one type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightType {
    /// The type's name: that of safetensors, or llama.cpp's.
    pub name: String,
    /// Number of values.
    pub parameters: u64,
    /// Their size in the files.
    pub bytes: u64,
}

/// The files that hold a base's tensors.
pub(crate) enum WeightFiles {
    /// Safetensors files, and where each tensor is, by the name that transformers 5 has for it.
    Safetensors(Vec<SafetensorsFile>, BTreeMap<String, TensorLocation>),
    /// A model in GGUF.
    Gguf(GgufWeights),
}

/// All tensors of a base by name.
pub struct Checkpoint {
    pub(crate) files: WeightFiles,
    /// How its safetensors files name their tensors.
    pub(crate) stored_names: CheckpointNames,
    /// Matrices that replace those of the files.
    pub(crate) edited: BTreeMap<String, MmapMatrix>,
    /// Further tensors, by the names of those whose values they have.
    copies: BTreeMap<String, String>,
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
            return Err(error("neither model.safetensors nor model.safetensors.index.json exists"));
        };
        let files = paths.iter().map(|path| SafetensorsFile::open(path)).collect::<std::result::Result<_, _>>()?;
        Self::of(files)
    }

    /// The tensors of a model in GGUF, by the names of Hugging Face's model.
    ///
    /// # Errors
    /// If its architecture is not supported, or a tensor has no place in it.
    pub fn of_gguf(shards: GgufShards) -> Result<Self> {
        Ok(Self {
            files: WeightFiles::Gguf(GgufWeights::new(shards)?),
            stored_names: CheckpointNames::default(),
            edited: BTreeMap::new(),
            copies: BTreeMap::new(),
        })
    }

    /// A base whose one safetensors file is in memory; errors name it as `name`.
    ///
    /// # Errors
    /// If it is not a complete safetensors file.
    pub fn from_bytes(name: &str, bytes: FileBytes) -> Result<Self> {
        Self::of(vec![SafetensorsFile::from_bytes(name, bytes)?])
    }

    fn of(files: Vec<SafetensorsFile>) -> Result<Self> {
        let stored_names = || files.iter().flat_map(|file| file.tensors().keys().map(String::as_str));
        if let Some((name, (prefix, meaning))) = stored_names().find_map(|name| Some((name, wrapper_prefix(name)?))) {
            let place = files.first().map_or_else(String::new, |file| file.path().display().to_string());
            let reason = format!("starts with `{prefix}`, {meaning}; save the model without it");
            return Err(ModelError::Tensor { place, tensor: name.to_owned(), reason });
        }
        let stored_names = CheckpointNames::of(stored_names());
        let mut names: BTreeMap<String, TensorLocation> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for (stored, entry) in file.tensors() {
                let place = TensorLocation { file: index, stored: stored.clone(), four_bit: None };
                // As in transformers, the last of equal ones is used.
                if let Some(other) = names.insert(stored_names.present(stored), place)
                    && (other.file == index || !is_same(file.stored(entry), &files[other.file], &other.stored))
                {
                    let others = if other.file == index { "under another name" } else { "with other values" };
                    return Err(ModelError::Tensor {
                        place: file.path().display().to_string(),
                        tensor: stored.clone(),
                        reason: format!("is also in {}, {others}", files[other.file].path().display()),
                    });
                }
            }
        }
        gather_four_bits(&files, &mut names)?;
        Ok(Self {
            files: WeightFiles::Safetensors(files, names),
            stored_names,
            edited: BTreeMap::new(),
            copies: BTreeMap::new(),
        })
    }

    /// The same with a second tensor `copy` of the values of `source`, unless it has a tensor of that name: what edits of
    /// two weights need that are one in the files.
    pub fn with_copy(mut self, source: &str, copy: &str) -> Self {
        if self.find(copy).is_none() && self.find(source).is_some() {
            self.copies.insert(copy.to_owned(), source.to_owned());
        }
        self
    }

    /// The same without some tensors of its safetensors files, where it has them: copies of a weight that is edited.
    pub fn without(mut self, names: &[&str]) -> Self {
        for name in names {
            if let WeightFiles::Safetensors(_, places) = &mut self.files {
                places.remove(*name);
            }
        }
        self
    }

    /// The tensors that [`Checkpoint::with_copy`] added, by name, with the file of their values.
    pub fn copies(&self) -> impl Iterator<Item = (&str, &Path)> {
        self.copied().map(|stored| (stored.name, stored.path()))
    }

    /// The size of all tensors in bytes as [`Checkpoint::write_edited`] writes them, each once.
    pub fn written_bytes(&self) -> u64 {
        self.tensors().map(|stored| stored.written_bytes() as u64).sum()
    }

    /// The same as tensors.
    pub(crate) fn copied(&self) -> impl Iterator<Item = StoredWeight<'_>> {
        self.copies.keys().filter_map(|name| self.find(name))
    }

    /// A matrix, or a vector as a matrix of one row, by name and shape.
    ///
    /// # Errors
    /// If it is missing, or has another shape or an unsupported type.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<MmapMatrix> {
        let Some(stored) = self.find(name) else {
            let reason = format!("is missing; the config asks for it with shape {shape:?}");
            return Err(ModelError::Tensor { place: self.place(), tensor: name.to_owned(), reason });
        };
        if stored.shape() != shape {
            return Err(stored.error(format!("has shape {:?}, the config asks for {shape:?}", stored.shape())));
        }
        match self.edited.get(name) {
            Some(edited) => Ok(edited.clone()),
            None => stored.matrix(),
        }
    }

    /// The name under which a tensor of its safetensors files is written again, and its file; none for one that is not.
    pub fn written(&self, stored: &str) -> Option<(String, &Path)> {
        let present = self.stored_names.present(stored);
        let path = self.find(&present)?.path();
        Some((if self.stored_names.are_replaced() { present } else { stored.to_owned() }, path))
    }

    /// Names of all tensors.
    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        let copies = self.copies.keys().map(String::as_str);
        match &self.files {
            WeightFiles::Safetensors(_, names) => Box::new(names.keys().map(String::as_str).chain(copies)),
            WeightFiles::Gguf(weights) => Box::new(weights.names().chain(copies)),
        }
    }

    /// The file, or the first of several, for messages.
    pub fn place(&self) -> String {
        match &self.files {
            WeightFiles::Safetensors(files, _) => {
                files.first().map_or_else(String::new, |file| file.path().display().to_string())
            }
            WeightFiles::Gguf(weights) => weights.shards().first().path().display().to_string(),
        }
    }

    /// Total size of the files in bytes.
    pub fn bytes(&self) -> u64 {
        match &self.files {
            WeightFiles::Safetensors(files, _) => files.iter().map(|file| file.bytes().len() as u64).sum(),
            WeightFiles::Gguf(weights) => weights.shards().files().iter().map(|file| file.bytes().len() as u64).sum(),
        }
    }

    /// Number of values of all tensors.
    pub fn parameters(&self) -> u64 {
        self.tensors().map(|stored| stored.values() as u64).sum()
    }

    /// The memory of all tensors in bytes, as their files store them: the files' size, but for the vocabulary that is in
    /// GGUF.
    pub(crate) fn weight_bytes(&self) -> u64 {
        match &self.files {
            WeightFiles::Safetensors(..) => self.bytes(),
            WeightFiles::Gguf(_) => self.tensors().map(|stored| stored.bytes() as u64).sum(),
        }
    }

    /// The types that its tensors are stored in, the largest first.
    pub(crate) fn weight_types(&self) -> Vec<WeightType> {
        let mut sizes: BTreeMap<String, WeightType> = BTreeMap::new();
        for stored in self.tensors() {
            let name = stored.type_name();
            let entry = sizes.entry(name.clone()).or_insert(WeightType { name, parameters: 0, bytes: 0 });
            entry.parameters += stored.values() as u64;
            entry.bytes += stored.bytes() as u64;
        }
        let mut types: Vec<WeightType> = sizes.into_values().collect();
        types.sort_by_key(|weights| Reverse(weights.bytes));
        types
    }

    /// The form of its weights where it is not that of Hugging Face's folders, as in `GGUF Q4_1 Q8_0 F32`: the types of
    /// the file, the largest first.
    pub(crate) fn form(&self) -> Option<String> {
        let format = match &self.files {
            WeightFiles::Gguf(_) => "GGUF",
            WeightFiles::Safetensors(_, places) if places.values().any(|place| place.four_bit.is_some()) => {
                "bitsandbytes"
            }
            WeightFiles::Safetensors(..) => return None,
        };
        let names: Vec<String> = self.weight_types().into_iter().map(|weights| weights.name).collect();
        Some(format!("{format} {}", names.join(" ")))
    }

    /// The tensors whose names start with one of `prefixes`: their number of values, and of bytes.
    pub(crate) fn size_of(&self, prefixes: &[&str]) -> (u64, u64) {
        let found = self.tensors().filter(|stored| prefixes.iter().any(|prefix| stored.name.starts_with(prefix)));
        found.fold((0, 0), |(values, bytes), stored| (values + stored.values() as u64, bytes + stored.bytes() as u64))
    }

    /// The tensors whose names start with one of `prefixes`, by the names that transformers 5 has for them: parts of a model
    /// that are not used, as they are in safetensors files.
    pub fn stored(&self, prefixes: &[&str]) -> Vec<(String, StoredTensor)> {
        let found = self.tensors().filter(|stored| prefixes.iter().any(|prefix| stored.name.starts_with(prefix)));
        let as_stored = |stored: StoredWeight<'_>| match stored.format {
            WeightFormat::Safetensors(file, entry) => Some((stored.name.to_owned(), file.stored(entry))),
            WeightFormat::FourBit(..) | WeightFormat::Gguf(_) => None,
        };
        found.filter_map(as_stored).collect()
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

    /// A hash of every header and of 64 blocks of 4 KiB of every file, or of GGUF of some blocks of every tensor: enough to
    /// tell bases apart without reading all their gigabytes.
    pub fn sampled_hash(&self) -> String {
        let mut hash = Sha256::new();
        match &self.files {
            WeightFiles::Safetensors(files, _) => files.iter().for_each(|file| hash_file(file, &mut hash)),
            WeightFiles::Gguf(weights) => weights.hash_into(&mut hash),
        }
        hex(&hash.finalize())
    }

    /// Whether the tensor of that name was edited in memory.
    pub(crate) fn is_edited(&self, name: &str) -> bool {
        self.edited.contains_key(name)
    }

    /// A tensor by name.
    pub(crate) fn find<'a>(&'a self, name: &str) -> Option<StoredWeight<'a>> {
        if let Some((name, source)) = self.copies.get_key_value(name) {
            return Some(StoredWeight { name, ..self.find(source)? });
        }
        match &self.files {
            WeightFiles::Safetensors(files, names) => {
                let (name, place) = names.get_key_value(name)?;
                let file = &files[place.file];
                let format = match &place.four_bit {
                    Some(matrix) => WeightFormat::FourBit(file, matrix),
                    None => WeightFormat::Safetensors(file, file.tensors().get(&place.stored)?),
                };
                Some(StoredWeight { name, format })
            }
            WeightFiles::Gguf(weights) => {
                let (name, tensor) = weights.find(name)?;
                Some(StoredWeight { name, format: WeightFormat::Gguf(tensor) })
            }
        }
    }

    /// All tensors.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = StoredWeight<'_>> {
        self.names().filter_map(|name| self.find(name))
    }
}

/// Joins each weight in the 4 bits of bitsandbytes with the tensors that describe it, which are no tensors of the base.
fn gather_four_bits(files: &[SafetensorsFile], places: &mut BTreeMap<String, TensorLocation>) -> Result<()> {
    let weights: Vec<String> = places.keys().filter_map(|name| described_weight(name)).map(str::to_owned).collect();
    for weight in weights {
        let find = |name: &str| {
            let place = places.get(name)?;
            let file = &files[place.file];
            Some((file, file.tensors().get(&place.stored)?))
        };
        let matrix = FourBitMatrix::read(&weight, find)?;
        SUFFIXES.iter().for_each(|suffix| drop(places.remove(&format!("{weight}{suffix}"))));
        if let Some(place) = places.get_mut(&weight) {
            place.four_bit = matrix;
        }
    }
    Ok(())
}

/// Whether a file has a tensor of that name with these values.
fn is_same(tensor: StoredTensor, file: &SafetensorsFile, stored: &str) -> bool {
    let other = file.tensors().get(stored).map(|entry| file.stored(entry));
    other.is_some_and(|other| {
        let kind = |tensor: &StoredTensor| (tensor.dtype(), tensor.shape().to_vec());
        kind(&tensor) == kind(&other) && tensor.data() == other.data()
    })
}

/// Adds a file's header and some of its blocks to a hash.
fn hash_file(file: &SafetensorsFile, hash: &mut Sha256) {
    let data = file.data();
    hash.update(file.header());
    hash.update((data.len() as u64).to_le_bytes());
    for i in 0..SAMPLED_BLOCKS {
        let start = data.len() / SAMPLED_BLOCKS * i;
        hash.update(&data[start..(start + SAMPLED_BLOCK_BYTES).min(data.len())]);
    }
}

/// The files that an index names, each once, in order of their names.
fn indexed_files(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = serde_json::from_str(&read_text(index)?).map_err(|source| ModelError::Json {
        file: index.display().to_string(),
        expected: "expected an object with `weight_map`",
        source,
    })?;
    if parsed.weight_map.is_empty() {
        let reason = "`weight_map` names no file".to_owned();
        return Err(ModelError::Checkpoint { place: index.display().to_string(), reason });
    }
    let names: BTreeSet<&String> = parsed.weight_map.values().collect();
    let error = |reason| ModelError::Checkpoint { place: index.display().to_string(), reason };
    let mut last_parts = BTreeSet::new();
    for name in &names {
        let path = Path::new(name);
        if !path
            .components()
            .all(|part| matches!(part, Component::Normal(part) if !part.as_encoded_bytes().starts_with(b".")))
        {
            return Err(error(format!("`{name}` is not the path of a file within the folder")));
        }
        // A merged base has all of its files in one folder.
        if !last_parts.insert(path.file_name()) {
            return Err(error(format!("`{name}` has the file name of a shard in another folder; rename one")));
        }
    }
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}
