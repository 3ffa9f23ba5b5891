//! Safetensors files (<https://github.com/huggingface/safetensors>): the header read once, the tensors as byte ranges.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, IntoInnerError, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use ::safetensors::tensor::{Metadata, TensorInfo};
pub use ::safetensors::{Dtype, View};
use ::safetensors::{SafeTensorError, SafeTensors};

use crate::atomic::write_file_by;
use crate::error::FormatError;
use crate::mmap::FileBytes;

/// The length of the header's length, which a file starts with.
const LENGTH_PREFIX: usize = 8;

/// The longest header that safetensors reads.
const MAX_HEADER: usize = 100_000_000;

/// A safetensors file whose header was read and checked; no tensor's bytes were touched.
#[derive(Clone, Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    bytes: FileBytes,
    data_start: usize,
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorEntry>,
}

/// A tensor's entry in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// The type of its values, little-endian in the file.
    pub dtype: Dtype,
    /// Its dimensions, the last one contiguous.
    pub shape: Vec<usize>,
    /// Where its values are within the file.
    pub bytes: Range<usize>,
}

/// A tensor as it is in its file, to be written into another.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    file: FileBytes,
    entry: TensorEntry,
}

impl View for StoredTensor {
    fn dtype(&self) -> Dtype {
        self.entry.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.entry.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        (&self.file[self.entry.bytes.clone()]).into()
    }

    fn data_len(&self) -> usize {
        self.entry.bytes.len()
    }
}

impl SafetensorsFile {
    /// Maps the file at `path` and reads its header.
    ///
    /// # Errors
    /// If the file cannot be mapped, or its header does not account for every byte.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        Self::from_bytes(path, FileBytes::map(path)?)
    }

    /// Reads the header from a file's bytes; `path` names the file in errors.
    ///
    /// # Errors
    /// If the header does not account for every byte.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: FileBytes) -> Result<Self, FormatError> {
        let path = path.into();
        let (header, parsed) = match SafeTensors::read_metadata(&bytes) {
            Ok(parsed) => parsed,
            Err(source) => return Err(FormatError::Safetensors { path, source }),
        };
        let data_start = LENGTH_PREFIX + header;
        let entry = |info: &::safetensors::tensor::TensorInfo| TensorEntry {
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: data_start + info.data_offsets.0..data_start + info.data_offsets.1,
        };
        let tensors = parsed.tensors().into_iter().map(|(name, info)| (name, entry(info))).collect();
        let metadata = parsed.metadata().iter().flatten().map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Self { path, bytes, data_start, metadata, tensors })
    }

    /// The path that the file was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file, which the entries' ranges are of.
    pub fn bytes(&self) -> &FileBytes {
        &self.bytes
    }

    /// The header with its length prefix.
    pub fn header(&self) -> &[u8] {
        &self.bytes[..self.data_start]
    }

    /// The values of all tensors, side by side.
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.data_start..]
    }

    /// The texts under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The entries of all tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, TensorEntry> {
        &self.tensors
    }

    /// The tensor of an entry of this file.
    pub fn stored(&self, entry: &TensorEntry) -> StoredTensor {
        StoredTensor { file: self.bytes.clone(), entry: entry.clone() }
    }

    /// The entry of the tensor `name`.
    ///
    /// # Errors
    /// If there is none; the error names file and tensor.
    pub fn tensor(&self, name: &str) -> Result<&TensorEntry, FormatError> {
        let missing = || FormatError::MissingTensor { path: self.path.clone(), name: name.to_owned() };
        self.tensors.get(name).ok_or_else(missing)
    }
}

/// The header, with its length prefix, of a file with these tensors in this order: name, type and dimensions of each.
pub fn header(tensors: &[(String, Dtype, Vec<usize>)]) -> Vec<u8> {
    let mut offset = 0;
    // transformers refuses a file that does not say which framework it is of.
    let mut entries = vec![r#""__metadata__":{"format":"pt"}"#.to_owned()];
    for (name, dtype, shape) in tensors {
        let end = offset + shape.iter().product::<usize>() * dtype.bitsize() / 8;
        // A text's debug form is JSON for all names that models have: letters, digits, dots and underscores.
        entries.push(format!(r#"{name:?}:{{"dtype":"{dtype:?}","shape":{shape:?},"data_offsets":[{offset},{end}]}}"#));
        offset = end;
    }
    let json = format!("{{{}}}", entries.join(","));
    let length = json.len().next_multiple_of(LENGTH_PREFIX);
    let mut header = (length as u64).to_le_bytes().to_vec();
    header.extend(json.bytes());
    // Spaces up to where values are aligned.
    header.resize(LENGTH_PREFIX + length, b' ');
    header
}

/// Writes a safetensors file tensor by tensor, so that no second copy of them is in memory. The file appears whole.
///
/// # Errors
/// If a tensor cannot be serialized, or the file cannot be written.
pub fn write_file<S: AsRef<str> + Ord + std::fmt::Display, V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: HashMap<String, String>,
) -> Result<(), FormatError> {
    write_file_by(path, |temporary| write_into(temporary, tensors, metadata).map_err(writing_error))
}

/// Writes a safetensors file without syncing it: the folder is synced as a whole when it is complete.
///
/// # Errors
/// If a tensor cannot be serialized, or the file cannot be written.
pub fn write_file_unsynced<S: AsRef<str> + Ord + std::fmt::Display, V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: HashMap<String, String>,
) -> Result<(), FormatError> {
    let written = write_into(path, tensors, metadata);
    written.map_err(|error| FormatError::Write { path: path.to_owned(), source: writing_error(error) })
}

/// Writes a safetensors file tensor by tensor into the file at `path`, and nothing beside it: `serialize_to_file` writes a
/// temporary file of its own there, which nobody removes if the process is killed. The bytes are the same.
///
/// # Errors
/// If a tensor cannot be serialized, or the file cannot be written.
pub fn write_into<S: AsRef<str> + Ord + std::fmt::Display, V: View>(
    path: &Path,
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: HashMap<String, String>,
) -> Result<(), SafeTensorError> {
    let mut tensors: Vec<(S, V)> = tensors.into_iter().collect();
    // As safetensors orders them: by alignment, then by name.
    tensors.sort_by(|(a, one), (b, other)| other.dtype().cmp(&one.dtype()).then(a.cmp(b)));
    let mut end = 0;
    let info = |(name, tensor): &(S, V)| {
        let start = end;
        end += tensor.data_len();
        let info = TensorInfo { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), data_offsets: (start, end) };
        (name.to_string(), info)
    };
    let infos = tensors.iter().map(info).collect();
    let mut json = serde_json::to_vec(&Metadata::new(Some(metadata), infos)?)?;
    json.resize(json.len().next_multiple_of(LENGTH_PREFIX), b' ');
    if json.len() > MAX_HEADER {
        return Err(SafeTensorError::HeaderTooLarge);
    }
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&(json.len() as u64).to_le_bytes())?;
    out.write_all(&json)?;
    tensors.iter().try_for_each(|(_, tensor)| out.write_all(&tensor.data()))?;
    out.into_inner().map(drop).map_err(|error| IntoInnerError::into_error(error).into())
}

/// Why a file could not be written: an I/O error itself, whose text safetensors' error repeats.
fn writing_error(error: SafeTensorError) -> Box<dyn Error + Send + Sync> {
    match error {
        SafeTensorError::IoError(error) => error.into(),
        other => other.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ::safetensors::tensor::TensorView;

    #[test]
    fn a_header_describes_the_tensors_that_follow() {
        let mut bytes = header(&[("a.b".to_owned(), Dtype::F32, vec![2, 3]), ("c".to_owned(), Dtype::BF16, vec![5])]);
        assert_eq!(bytes.len() % 8, 0);
        bytes.extend([7; 34]);
        let file = SafetensorsFile::from_bytes("h", FileBytes::Owned(bytes.into())).unwrap();
        assert_eq!((&file.tensor("a.b").unwrap().shape[..], file.data().len()), (&[2, 3][..], 34));
        let entry = file.tensor("c").unwrap();
        assert_eq!((entry.dtype, &entry.shape[..], file.metadata()["format"].as_str()), (Dtype::BF16, &[5][..], "pt"));
    }

    /// Two numbers that look around while they are written.
    struct Witness<'a>(&'a Path);

    impl View for Witness<'_> {
        fn dtype(&self) -> Dtype {
            Dtype::U8
        }

        fn shape(&self) -> &[usize] {
            &[2]
        }

        fn data(&self) -> Cow<'_, [u8]> {
            let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
            let names: Vec<String> = std::fs::read_dir(self.0).unwrap().map(name).collect();
            assert!(names.iter().all(|name| name.starts_with(".new-")), "recovery would not find them: {names:?}");
            (&[1, 2]).into()
        }

        fn data_len(&self) -> usize {
            2
        }
    }

    #[test]
    fn a_file_being_written_has_a_name_that_recovery_knows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        write_file(&path, [("a", Witness(folder.path()))], HashMap::new()).unwrap();
        assert_eq!(SafetensorsFile::open(&path).unwrap().data(), [1, 2]);
    }

    #[test]
    fn bytes_are_those_that_safetensors_writes() {
        let (wide, narrow, folder) = ([1u8; 24], [2u8; 6], tempfile::tempdir().unwrap());
        let views = || {
            let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
            let numbers = view(Dtype::F32, &[3, 2], &wide);
            [("z", view(Dtype::F16, &[3], &narrow[..])), ("é\"b", numbers.clone()), ("a", numbers)]
        };
        let metadata = HashMap::from([("state".to_owned(), "{\"step\":1}".to_owned())]);
        let path = folder.path().join("w.safetensors");
        write_into(&path, views(), metadata.clone()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), ::safetensors::serialize(views(), Some(metadata)).unwrap());
    }

    #[test]
    fn a_full_disk_is_named_once() {
        let error = writing_error(SafeTensorError::IoError(std::io::Error::other("no space left")));
        assert_eq!(error.to_string(), "no space left");
        assert!(error.source().is_none());
    }

    #[test]
    fn tensors_are_byte_ranges_and_errors_name_file_and_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let bytes: Vec<u8> = [1f32, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, vec![2, 2], &bytes).unwrap();
        write_file(&path, [("a", view)], HashMap::from([("format".to_owned(), "pt".to_owned())])).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        let entry = file.tensor("a").unwrap();
        assert_eq!(
            (entry.dtype, &entry.shape[..], &file.bytes()[entry.bytes.clone()]),
            (Dtype::F32, &[2, 2][..], &bytes[..])
        );
        assert_eq!((file.metadata()["format"].as_str(), file.data()), ("pt", &bytes[..]));
        let error = file.tensor("b").unwrap_err().to_string();
        assert!(error.contains("w.safetensors") && error.contains("`b`"), "{error}");
        let whole = std::fs::read(&path).unwrap();
        for cut in [0, 4, 20, whole.len() - 1] {
            let error = SafetensorsFile::from_bytes("cut", FileBytes::Owned(whole[..cut].into())).unwrap_err();
            assert!(error.to_string().starts_with("cut: not a complete safetensors file"), "{error}");
        }
    }
}
