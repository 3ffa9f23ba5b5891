//! The safetensors files of a model folder, memory-mapped and never copied.

use crate::weight::{Element, Mapped};
use anyhow::{Context, Result, bail, ensure};
use lorakit_format::hash::hex;
use memmap2::Mmap;
use safetensors::tensor::{Metadata, SafeTensors, TensorInfo};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One mapped file with its header.
pub(crate) struct Shard {
    pub(crate) path: PathBuf,
    pub(crate) bytes: Bytes,
    pub(crate) metadata: Metadata,
    /// Where the tensors' bytes start.
    pub(crate) data: usize,
}

/// The bytes of a file: mapped, or part of the program.
#[derive(Clone)]
pub enum Bytes {
    /// A memory-mapped file.
    Mapped(Arc<Mmap>),
    /// Bytes in memory.
    Owned(Arc<[u8]>),
    /// Bytes inside the binary.
    Static(&'static [u8]),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
            Self::Static(bytes) => bytes,
        }
    }
}

/// All tensors of a base by name.
pub struct Checkpoint {
    pub(crate) shards: Vec<Shard>,
    /// Name to index of its shard.
    pub(crate) names: BTreeMap<String, usize>,
    /// Matrices that stand in place of those of the files.
    pub(crate) overlay: BTreeMap<String, Mapped>,
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the files that `model.safetensors.index.json` names.
    pub fn open(folder: &Path) -> Result<Self> {
        let index = folder.join("model.safetensors.index.json");
        let single = folder.join("model.safetensors");
        let files = if single.exists() {
            vec![single]
        } else if index.exists() {
            indexed_files(folder, &index)?
        } else if folder.join("pytorch_model.bin").exists() || folder.join("pytorch_model.bin.index.json").exists() {
            bail!(
                "{}: the weights are pickles (.bin), which lorakit does not execute; save the model with safetensors",
                folder.display()
            )
        } else {
            bail!("{}: neither model.safetensors nor model.safetensors.index.json is there", folder.display())
        };
        let mut shards = Vec::new();
        for path in files {
            let file = File::open(&path).with_context(|| format!("{}: cannot be opened", path.display()))?;
            // SAFETY: the map is read-only; that nobody truncates a base while it is used is the user's part, as
            // with every program that maps its weights.
            let map = unsafe { Mmap::map(&file) }.with_context(|| format!("{}: cannot be mapped", path.display()))?;
            shards.push(Shard::read(path, Bytes::Mapped(Arc::new(map)))?);
        }
        Self::of(shards)
    }

    /// A base whose one safetensors file is in memory; `name` stands for its path in errors.
    pub fn from_bytes(name: &str, bytes: Bytes) -> Result<Self> {
        Self::of(vec![Shard::read(name.into(), bytes)?])
    }

    fn of(shards: Vec<Shard>) -> Result<Self> {
        let mut names = BTreeMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.metadata.tensors().into_keys() {
                if let Some(other) = names.insert(name.clone(), i) {
                    bail!("{}: tensor '{name}' is also in {}", shard.path.display(), shards[other].path.display());
                }
            }
        }
        Ok(Self { shards, names, overlay: BTreeMap::new() })
    }

    /// A matrix or vector (one row) by name and shape.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Mapped> {
        let shard = self.names.get(name).map(|&i| &self.shards[i]).with_context(|| {
            format!("{}: tensor '{name}' is missing; the config asks for it with shape {shape:?}", self.place())
        })?;
        let info = shard
            .metadata
            .info(name)
            .with_context(|| format!("{}: tensor '{name}' has no entry", shard.path.display()))?;
        ensure!(
            info.shape == shape,
            "{}: tensor '{name}' has shape {:?}, the config asks for {shape:?}",
            shard.path.display(),
            info.shape
        );
        if let Some(changed) = self.overlay.get(name) {
            return Ok(changed.clone());
        }
        let element = Element::of(info.dtype).with_context(|| {
            format!("{}: tensor '{name}' is {:?}; lorakit reads F32, F16 and BF16", shard.path.display(), info.dtype)
        })?;
        let (rows, columns) = if let [rows, columns] = *shape { (rows, columns) } else { (1, shape.iter().product()) };
        Mapped::new(shard.bytes.clone(), shard.range(info), element, rows, columns)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Names of all tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// The file, or the first of several, for messages.
    pub fn place(&self) -> String {
        self.shards.first().map_or_else(String::new, |s| s.path.display().to_string())
    }

    /// Total size of the files in bytes.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes.len() as u64).sum()
    }

    /// Number of values of all tensors.
    pub fn parameters(&self) -> u64 {
        let sizes =
            |s: &Shard| s.metadata.tensors().values().map(|i| i.shape.iter().product::<usize>() as u64).sum::<u64>();
        self.shards.iter().map(sizes).sum()
    }

    /// A hash of every header and of 64 sampled blocks of 4 KiB of every file: enough to tell bases apart, and
    /// nothing 5 GB large is read for it.
    pub fn sampled_hash(&self) -> String {
        let mut hash = Sha256::new();
        for shard in &self.shards {
            hash.update(&shard.bytes[..shard.data]);
            let body = &shard.bytes[shard.data..];
            hash.update((body.len() as u64).to_le_bytes());
            for i in 0..64 {
                let start = body.len() / 64 * i;
                hash.update(&body[start..(start + 4096).min(body.len())]);
            }
        }
        hex(&hash.finalize())
    }

    /// A hash of every byte of every file.
    pub fn full_hash(&self) -> String {
        let mut hash = Sha256::new();
        self.shards.iter().for_each(|shard| hash.update(&shard.bytes[..]));
        hex(&hash.finalize())
    }
}

impl Shard {
    fn read(path: PathBuf, bytes: Bytes) -> Result<Self> {
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|error| {
            anyhow::anyhow!(
                "{}: not a whole safetensors file ({error}); it may be truncated: fetch or save it again",
                path.display()
            )
        })?;
        Ok(Self { path, bytes, metadata, data: header + 8 })
    }

    /// Where a tensor's bytes are in the file.
    pub(crate) fn range(&self, info: &TensorInfo) -> Range<usize> {
        self.data + info.data_offsets.0..self.data + info.data_offsets.1
    }
}

fn indexed_files(folder: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = std::fs::read_to_string(index).with_context(|| format!("{}: cannot be read", index.display()))?;
    let parsed: Index = serde_json::from_str(&text)
        .with_context(|| format!("{}: expected an object with 'weight_map'", index.display()))?;
    let mut files: Vec<&String> = parsed.weight_map.values().collect();
    files.sort();
    files.dedup();
    files
        .into_iter()
        .map(|file| {
            let plain = Path::new(file).components().count() == 1 && !file.starts_with('.');
            ensure!(plain, "{}: '{file}' is no plain file name", index.display());
            Ok(folder.join(file))
        })
        .collect()
}
