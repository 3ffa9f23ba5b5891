//! A file of torch.save: a zip of one pickle and the bytes of its tensors, read as data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use zip::ZipArchive;

use crate::import::pickle::Pickle;
use crate::import::pickle_value::{Value, ValueId};

/// The largest pickle that is read. Tensors lie beside it, so that of a large library has some hundred kilobytes.
const PICKLE_LIMIT: u64 = 16 << 20;

/// The most dimensions of a tensor, and the longest name of a storage: both are copied for each tensor, and may be shared.
const DIMENSION_LIMIT: usize = 8;
const STORAGE_NAME_LIMIT: usize = 128;

/// How many values there may be for each byte of the file: a half of one, were nothing shared.
const SHARED_LIMIT: u64 = 8;

/// An opened file.
pub(crate) struct TorchFile {
    archive: ZipArchive<BufReader<File>>,
    /// The size of the file in bytes.
    length: u64,
    /// What stands before `data.pkl` in the names of its parts.
    prefix: String,
    pickle: Pickle,
}

/// A tensor's shape and row-major values.
pub(crate) type Dense = (Vec<usize>, Vec<f32>);

impl TorchFile {
    /// Opens the file at `path` and reads its pickle. No tensor is read.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            anyhow::anyhow!(
                "no file of torch.save since 1.6, which is a zip ({error}); is it whole? Save older ones again"
            )
        })?;
        let names = archive.file_names().map(|name| Ok(name?.into_owned())).collect::<Result<Vec<String>>>()?;
        let name = names.iter().find(|name| *name == "data.pkl" || name.ends_with("/data.pkl"));
        let name = name.context("no data.pkl is in the zip; expected a file of torch.save")?;
        let prefix = name.trim_end_matches("data.pkl").to_owned();
        if let Ok(mut order) = archive.by_name(&format!("{prefix}byteorder")) {
            let mut text = String::new();
            order.by_ref().take(16).read_to_string(&mut text)?;
            ensure!(text == "little", "the byte order is {text:?}; expected little");
        }
        let mut bytes = Vec::new();
        archive.by_name(name)?.take(PICKLE_LIMIT + 1).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 <= PICKLE_LIMIT, "data.pkl has more than {PICKLE_LIMIT} bytes");
        Ok(Self { pickle: Pickle::read(&bytes).context("data.pkl")?, archive, length, prefix })
    }

    /// The pickle.
    pub(crate) fn pickle(&self) -> &Pickle {
        &self.pickle
    }

    /// The tensors of the dict at `place`, which holds nothing else, sorted by key.
    pub(crate) fn tensors(&mut self, place: ValueId) -> Result<Vec<(String, Dense)>> {
        // The last of a key counts, as in Python. Only then are keys copied: a long one may be shared by many.
        let mut entries = BTreeMap::new();
        for (key, value) in self.pickle.entries(place) {
            let text = self.pickle.text(*key);
            let text = text.with_context(|| format!("a key is {}; expected a text", self.pickle.value(*key)))?;
            entries.insert(text, *value);
        }
        let tensor = |(key, value): (&str, ValueId)| -> Result<(String, Stored)> {
            let tensor = Stored::of(&self.pickle, value).with_context(|| format!("`{key}`"))?;
            Ok((key.to_owned(), tensor))
        };
        let mut stored = entries.into_iter().map(tensor).collect::<Result<Vec<_>>>()?;
        let values = stored.iter().map(|(_, tensor)| tensor.count()).try_fold(0usize, |sum, n| sum.checked_add(n?));
        // Tensors may share their storage, as tied ones do, but not so that a small file fills the memory.
        ensure!(
            values.is_some_and(|values| values as u64 <= SHARED_LIMIT * self.length),
            "its tensors claim {} values, and the file has {} bytes",
            values.map_or_else(|| "too many".to_owned(), |values| values.to_string()),
            self.length
        );
        // In the order of their storages, each of which is then read once.
        stored.sort_by(|(_, one), (_, other)| one.storage.cmp(&other.storage));
        let mut tensors = Vec::with_capacity(stored.len());
        let mut storage: Option<(String, Vec<f32>)> = None;
        for (key, tensor) in stored {
            let gathered = match &storage {
                Some((name, values)) if *name == tensor.place() => tensor.gathered(values),
                _ => self.storage(&tensor).and_then(|values| {
                    let gathered = tensor.gathered(&values);
                    storage = Some((tensor.place(), values));
                    gathered
                }),
            };
            let values = gathered.with_context(|| format!("tensor `{key}`"))?;
            tensors.push((key, (tensor.shape, values)));
        }
        tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(tensors)
    }

    /// The values of the storage that a tensor is part of.
    fn storage(&mut self, tensor: &Stored) -> Result<Vec<f32>> {
        let name = format!("{}data/{}", self.prefix, tensor.storage);
        let mut bytes = Vec::new();
        // The zip's own size bounds what is read, whatever the pickle claims: nothing is compressed.
        self.archive.by_name(&name).with_context(|| format!("{name} is not in the zip"))?.read_to_end(&mut bytes)?;
        Ok(match tensor.kind {
            Kind::Double => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            Kind::Float => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Kind::Half => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Kind::Brain => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        })
    }
}

/// The types of floats that torch stores.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Double,
    Float,
    Half,
    Brain,
}

/// Where a tensor's values lie.
#[derive(Debug)]
struct Stored {
    storage: String,
    kind: Kind,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Stored {
    /// The tensor that a call of torch's `_rebuild_tensor_v2` describes, bare or as a parameter.
    fn of(pickle: &Pickle, place: ValueId) -> Result<Self> {
        let (name, arguments) = call(pickle, place)?;
        let (name, arguments) = match (name, arguments) {
            ("torch._utils._rebuild_parameter", [data, ..]) => call(pickle, *data)?,
            other => other,
        };
        ensure!(name == "torch._utils._rebuild_tensor_v2", "found a `{name}`; expected a tensor");
        let [storage, offset, shape, strides, ..] = arguments else { bail!("a tensor that is not whole") };
        let Value::Persistent(key) = pickle.value(*storage) else { bail!("a tensor without a storage") };
        let Some([_, kind, key, ..]) = pickle.tuple(*key) else { bail!("a storage that is not whole") };
        let kind = match pickle.value(*kind) {
            Value::Name(name) => match name.as_str() {
                "torch.DoubleStorage" => Kind::Double,
                "torch.FloatStorage" => Kind::Float,
                "torch.HalfStorage" => Kind::Half,
                "torch.BFloat16Storage" => Kind::Brain,
                other => bail!("values of `{other}`; expected floats"),
            },
            other => bail!("values of {other}; expected floats"),
        };
        let count = |place: ValueId| match pickle.value(place) {
            Value::Int(count) => usize::try_from(*count).ok().context("a negative size"),
            other => bail!("a size is {other}; expected a whole number"),
        };
        let counts = |place: ValueId| -> Result<Vec<usize>> {
            let sizes = pickle.tuple(place).context("sizes that are no tuple")?;
            ensure!(sizes.len() <= DIMENSION_LIMIT, "{} dimensions; expected at most {DIMENSION_LIMIT}", sizes.len());
            sizes.iter().map(|place| count(*place)).collect()
        };
        let (shape, strides) = (counts(*shape)?, counts(*strides)?);
        ensure!(shape.len() == strides.len(), "{} sizes and {} strides", shape.len(), strides.len());
        let storage = pickle.text(*key).context("a storage without a name")?;
        ensure!(
            storage.len() <= STORAGE_NAME_LIMIT,
            "a storage's name has {} bytes; expected at most {STORAGE_NAME_LIMIT}",
            storage.len()
        );
        Ok(Self { storage: storage.to_owned(), kind, offset: count(*offset)?, shape, strides })
    }

    /// The number of values, if it is one.
    fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size))
    }

    /// Storage and type together: a storage is of one type, or is read again.
    fn place(&self) -> String {
        format!("{:?} {}", self.kind, self.storage)
    }

    /// The values row by row, of a storage in which they may stand in any order.
    fn gathered(&self, storage: &[f32]) -> Result<Vec<f32>> {
        let too_large =
            || format!("shape {:?} with strides {:?} does not fit {} values", self.shape, self.strides, storage.len());
        let count = self.count().with_context(too_large)?;
        // Torch can repeat values by strides of zero; nobody saves an adapter so, and a claimed size is not trusted.
        ensure!(count <= storage.len(), "{}", too_large());
        let mut values = Vec::with_capacity(count);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..count {
            let place = index
                .iter()
                .zip(&self.strides)
                .try_fold(self.offset, |sum, (at, stride)| sum.checked_add(at.checked_mul(*stride)?));
            values.push(*place.and_then(|place| storage.get(place)).with_context(too_large)?);
            for (at, size) in index.iter_mut().zip(&self.shape).rev() {
                *at += 1;
                if *at < *size {
                    break;
                }
                *at = 0;
            }
        }
        Ok(values)
    }
}

/// The name of what was to be called, and with what.
fn call(pickle: &Pickle, place: ValueId) -> Result<(&str, &[ValueId])> {
    match pickle.value(place) {
        Value::Call { callee, arguments, .. } => {
            let Value::Name(name) = pickle.value(*callee) else { bail!("expected a tensor") };
            Ok((name, pickle.tuple(*arguments).unwrap_or_default()))
        }
        other => bail!("found {other}; expected a tensor"),
    }
}
