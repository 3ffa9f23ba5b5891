//! A file of torch.save: a zip of one pickle and the bytes of its tensors, read as data.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use half::{bf16, f16};
use zip::ZipArchive;

use crate::error::{AdapterError, Result, Within, pickle_error};
use crate::import::pickle::Pickle;
use crate::import::pickle_value::{Value, ValueId};

/// The largest pickle that is read, in bytes. Tensors are stored outside of it, so that of a large library has some
/// hundred kilobytes.
const PICKLE_LIMIT: u64 = 16 << 20;

/// The most dimensions of a tensor, and the longest name of a storage: both are copied for each tensor and may be
/// shared.
const DIMENSION_LIMIT: usize = 8;
const STORAGE_NAME_LIMIT: usize = 128;

/// The limit of values per byte of the file. Half a value is the most without sharing.
const SHARED_LIMIT: u64 = 8;

/// An open file of torch.save.
pub(crate) struct TorchFile {
    archive: ZipArchive<BufReader<File>>,
    /// The size of the file in bytes.
    length: u64,
    /// What precedes `data.pkl` in the names of the zip's entries.
    prefix: String,
    pickle: Pickle,
}

/// A tensor's shape and row-major values.
pub(crate) type TorchTensor = (Vec<usize>, Vec<f32>);

impl TorchFile {
    /// Opens the file at `path` and reads its pickle, but no tensor.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|cause| {
            pickle_error(format!(
                "not a file of torch.save since 1.6, which is a zip ({cause}); is it complete? Save older ones again"
            ))
        })?;
        let name = data_pickle(&archive)?;
        let prefix = name.trim_end_matches("data.pkl").to_owned();
        if let Ok(mut order) = archive.by_name(&format!("{prefix}byteorder")) {
            let mut text = String::new();
            order.by_ref().take(16).read_to_string(&mut text)?;
            if text != "little" {
                return Err(pickle_error(format!("the byte order is {text:?}; expected little")));
            }
        }
        let mut bytes = Vec::new();
        archive.by_name(&name).map_err(zip_error)?.take(PICKLE_LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > PICKLE_LIMIT {
            return Err(pickle_error(format!("data.pkl has more than {PICKLE_LIMIT} bytes")));
        }
        Ok(Self { pickle: Pickle::read(&bytes).within(|| "data.pkl".to_owned())?, archive, length, prefix })
    }

    /// The pickle.
    pub(crate) fn pickle(&self) -> &Pickle {
        &self.pickle
    }

    /// The tensors of the dict `id`, which holds nothing else, sorted by key.
    pub(crate) fn tensors(&mut self, id: ValueId) -> Result<Vec<(String, TorchTensor)>> {
        let mut stored = self.stored_tensors(id)?;
        let counts = stored.iter().map(|(_, tensor)| tensor.count());
        let total = counts.into_iter().try_fold(0usize, |sum, count| sum.checked_add(count?));
        // Tensors may share their storage, as tied ones do, but not so that a small file fills the memory.
        if total.is_none_or(|total| total as u64 > SHARED_LIMIT * self.length) {
            let total = total.map_or_else(|| "too many".to_owned(), |total| total.to_string());
            return Err(pickle_error(format!(
                "its tensors claim {total} values, and the file has {} bytes",
                self.length
            )));
        }
        // In the order of their storages, each of which is then read once.
        stored.sort_by(|(_, one), (_, other)| one.storage.cmp(&other.storage));
        let mut tensors = Vec::with_capacity(stored.len());
        let mut current: Option<(String, Vec<f32>)> = None;
        for (key, tensor) in stored {
            let values = self.gather(&tensor, &mut current).within(|| format!("tensor `{key}`"))?;
            tensors.push((key, (tensor.shape, values)));
        }
        tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(tensors)
    }

    /// Where the tensors of the dict `id` are stored.
    fn stored_tensors(&self, id: ValueId) -> Result<Vec<(String, StridedTensor)>> {
        // The last of equal keys counts, as in Python. Keys are copied only then: a long one may be shared by many.
        let mut entries = BTreeMap::new();
        for (key, value) in self.pickle.entries(id) {
            let text = self.pickle.text(*key);
            let text =
                text.ok_or_else(|| pickle_error(format!("a key is {}; expected a text", self.pickle.value(*key))))?;
            entries.insert(text, *value);
        }
        let tensor = |(key, value): (&str, ValueId)| {
            Ok((key.to_owned(), StridedTensor::of(&self.pickle, value).within(|| format!("`{key}`"))?))
        };
        entries.into_iter().map(tensor).collect()
    }

    /// The values of a tensor, where `current` is the storage that was read last.
    fn gather(&mut self, tensor: &StridedTensor, current: &mut Option<(String, Vec<f32>)>) -> Result<Vec<f32>> {
        let name = tensor.storage_and_type();
        let values = match current.take().filter(|(known, _)| *known == name) {
            Some((_, values)) => values,
            None => self.storage(tensor)?,
        };
        let gathered = tensor.gather(&values);
        *current = Some((name, values));
        gathered
    }

    /// The values of the storage that a tensor is part of.
    fn storage(&mut self, tensor: &StridedTensor) -> Result<Vec<f32>> {
        let name = format!("{}data/{}", self.prefix, tensor.storage);
        let mut bytes = Vec::new();
        // The zip's own size bounds what is read, whatever the pickle claims: nothing is compressed.
        let entry = self.archive.by_name(&name).map_err(zip_error);
        entry.within(|| format!("{name} is not in the zip"))?.read_to_end(&mut bytes)?;
        Ok(match tensor.storage_type {
            StorageType::Double => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
            StorageType::Float => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            StorageType::Half => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            StorageType::BFloat16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        })
    }
}

/// The floating-point types that torch stores.
#[derive(Clone, Copy, Debug)]
enum StorageType {
    Double,
    Float,
    Half,
    BFloat16,
}

/// Where a tensor's values are.
#[derive(Debug)]
struct StridedTensor {
    storage: String,
    storage_type: StorageType,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl StridedTensor {
    /// The tensor that a call of torch's `_rebuild_tensor_v2` describes, plain or as a parameter.
    fn of(pickle: &Pickle, id: ValueId) -> Result<Self> {
        let (name, arguments) = call(pickle, id)?;
        let (name, arguments) = match (name, arguments) {
            ("torch._utils._rebuild_parameter", [data, ..]) => call(pickle, *data)?,
            other => other,
        };
        if name != "torch._utils._rebuild_tensor_v2" {
            return Err(pickle_error(format!("found a `{name}`; expected a tensor")));
        }
        let [storage, offset, shape, strides, ..] = arguments else { return Err(pickle_error("an incomplete tensor")) };
        let Value::Persistent(key) = pickle.value(*storage) else {
            return Err(pickle_error("a tensor without a storage"));
        };
        let Some([_, storage_type, key, ..]) = pickle.tuple(*key) else {
            return Err(pickle_error("an incomplete storage"));
        };
        let storage_type = StorageType::of(pickle.value(*storage_type))?;
        let (shape, strides) = (sizes(pickle, *shape)?, sizes(pickle, *strides)?);
        if shape.len() != strides.len() {
            return Err(pickle_error(format!("{} sizes and {} strides", shape.len(), strides.len())));
        }
        let storage = pickle.text(*key).ok_or_else(|| pickle_error("a storage without a name"))?;
        if storage.len() > STORAGE_NAME_LIMIT {
            let length = storage.len();
            return Err(pickle_error(format!(
                "a storage's name has {length} bytes; expected at most {STORAGE_NAME_LIMIT}"
            )));
        }
        Ok(Self { storage: storage.to_owned(), storage_type, offset: size(pickle, *offset)?, shape, strides })
    }

    /// The number of values, unless it overflows.
    fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size))
    }

    /// The storage together with its type: it is read once for each type.
    fn storage_and_type(&self) -> String {
        format!("{:?} {}", self.storage_type, self.storage)
    }

    /// The values row by row, of a storage that may have them in any order.
    fn gather(&self, storage: &[f32]) -> Result<Vec<f32>> {
        let too_large = || {
            let (shape, strides, values) = (&self.shape, &self.strides, storage.len());
            pickle_error(format!("shape {shape:?} with strides {strides:?} does not fit {values} values"))
        };
        // Torch can repeat values by strides of zero; adapters are not saved that way, and a claimed size is not
        // trusted.
        let count = self.count().filter(|count| *count <= storage.len()).ok_or_else(too_large)?;
        let mut values = Vec::with_capacity(count);
        let mut index = vec![0usize; self.shape.len()];
        for _ in 0..count {
            let position = index
                .iter()
                .zip(&self.strides)
                .try_fold(self.offset, |sum, (at, stride)| sum.checked_add(at.checked_mul(*stride)?));
            values.push(*position.and_then(|position| storage.get(position)).ok_or_else(too_large)?);
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

impl StorageType {
    fn of(value: &Value) -> Result<Self> {
        match value {
            Value::Name(name) => match name.as_str() {
                "torch.DoubleStorage" => Ok(Self::Double),
                "torch.FloatStorage" => Ok(Self::Float),
                "torch.HalfStorage" => Ok(Self::Half),
                "torch.BFloat16Storage" => Ok(Self::BFloat16),
                other => Err(pickle_error(format!("values of `{other}`; expected floats"))),
            },
            other => Err(pickle_error(format!("values of {other}; expected floats"))),
        }
    }
}

/// The name of a zip's pickle.
fn data_pickle(archive: &ZipArchive<BufReader<File>>) -> Result<String> {
    for name in archive.file_names() {
        let name = name.map_err(zip_error)?;
        if name == "data.pkl" || name.ends_with("/data.pkl") {
            return Ok(name.into_owned());
        }
    }
    Err(pickle_error("no data.pkl is in the zip; expected a file of torch.save"))
}

/// The sizes or strides in a tuple.
fn sizes(pickle: &Pickle, id: ValueId) -> Result<Vec<usize>> {
    let items = pickle.tuple(id).ok_or_else(|| pickle_error("sizes that are not a tuple"))?;
    if items.len() > DIMENSION_LIMIT {
        return Err(pickle_error(format!("{} dimensions; expected at most {DIMENSION_LIMIT}", items.len())));
    }
    items.iter().map(|item| size(pickle, *item)).collect()
}

fn size(pickle: &Pickle, id: ValueId) -> Result<usize> {
    match pickle.value(id) {
        Value::Int(count) => usize::try_from(*count).map_err(|_| pickle_error("a negative size")),
        other => Err(pickle_error(format!("a size is {other}; expected an integer"))),
    }
}

/// The callee and the arguments of a call.
fn call(pickle: &Pickle, id: ValueId) -> Result<(&str, &[ValueId])> {
    match pickle.value(id) {
        Value::Call { callee, arguments, .. } => {
            let Value::Name(name) = pickle.value(*callee) else { return Err(pickle_error("expected a tensor")) };
            Ok((name, pickle.tuple(*arguments).unwrap_or_default()))
        }
        other => Err(pickle_error(format!("found {other}; expected a tensor"))),
    }
}

fn zip_error(cause: zip::result::ZipError) -> AdapterError {
    pickle_error(cause.to_string())
}
