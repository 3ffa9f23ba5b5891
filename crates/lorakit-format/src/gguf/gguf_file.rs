//! Reading one GGUF file: its metadata and the places of its tensors.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::FormatError;
use crate::gguf::byte_reader::{ByteReader, INCOMPLETE};
use crate::gguf::ggml_type::GgmlType;
use crate::gguf::gguf_layout::{ALIGNMENT, ALIGNMENT_KEY, MAGIC};
use crate::gguf::gguf_value::GgufValue;
use crate::mmap::FileBytes;

/// The versions that are read. Version 1 had counts of 32 bits and is found nowhere any more.
const VERSIONS: [u32; 2] = [2, 3];

/// The most dimensions of a tensor.
const DIMENSIONS: u32 = 4;

/// The fewest bytes of an entry of the metadata: a key of one letter, a type, and a value of one byte.
const SMALLEST_ENTRY: usize = 8 + 1 + 4 + 1;

/// The fewest bytes of a tensor's description: a name of one letter, one dimension, a type and an offset.
const SMALLEST_TENSOR: usize = 8 + 1 + 4 + 8 + 4 + 8;

/// A GGUF file whose header was read and checked; no tensor's bytes were touched.
#[derive(Clone, Debug)]
pub struct GgufFile {
    path: PathBuf,
    bytes: FileBytes,
    metadata: BTreeMap<String, GgufValue>,
    tensors: BTreeMap<String, GgufEntry>,
}

/// A tensor as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufEntry {
    /// The type of its values.
    pub dtype: GgmlType,
    /// Its dimensions, the last one contiguous, as in safetensors; the file has them in reverse.
    pub shape: Vec<usize>,
    /// Where its blocks are within the file.
    pub bytes: Range<usize>,
}

impl GgufFile {
    /// Maps the file at `path` and reads its header.
    ///
    /// # Errors
    /// If the file cannot be mapped, or is not a complete GGUF file; the error names the key or tensor.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        Self::from_bytes(path, FileBytes::map(path)?)
    }

    /// Reads the header from a file's bytes; `path` names the file in errors.
    ///
    /// # Errors
    /// If it is not a complete GGUF file.
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: FileBytes) -> Result<Self, FormatError> {
        let path = path.into();
        match read_header(&bytes) {
            Ok((metadata, tensors)) => Ok(Self { path, bytes, metadata, tensors }),
            Err(reason) => Err(FormatError::Gguf { path, reason }),
        }
    }

    /// The path that the file was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All bytes of the file, which the entries' ranges are of.
    pub fn bytes(&self) -> &FileBytes {
        &self.bytes
    }

    /// The metadata, by key.
    pub fn metadata(&self) -> &BTreeMap<String, GgufValue> {
        &self.metadata
    }

    /// The entries of all tensors, by name.
    pub fn tensors(&self) -> &BTreeMap<String, GgufEntry> {
        &self.tensors
    }

    /// An error about this file.
    pub fn error(&self, reason: impl Into<String>) -> FormatError {
        FormatError::Gguf { path: self.path.clone(), reason: reason.into() }
    }
}

/// The metadata and the tensors.
type Header = (BTreeMap<String, GgufValue>, BTreeMap<String, GgufEntry>);

fn read_header(bytes: &[u8]) -> Result<Header, String> {
    let mut reader = ByteReader::new(bytes);
    if bytes.first_chunk() != Some(MAGIC) {
        return Err("not a GGUF file; if it was downloaded or copied, do that again".to_owned());
    }
    let _: [u8; 4] = reader.array()?;
    let version = reader.u32()?;
    if !VERSIONS.contains(&version) {
        let big_endian = VERSIONS.contains(&version.swap_bytes());
        let reason = if big_endian { "is big-endian".to_owned() } else { format!("has version {version} of GGUF") };
        return Err(format!("{reason}; lorakit reads little-endian files of versions 2 and 3"));
    }
    let tensors = reader.count(SMALLEST_TENSOR, "tensors")?;
    let entries = reader.count(SMALLEST_ENTRY, "keys")?;
    let metadata = read_metadata(&mut reader, entries)?;
    let alignment = alignment(&metadata)?;
    let mut list = Vec::new();
    for index in 0..tensors {
        list.push(Description::read(&mut reader, index)?);
    }
    let start = reader.position().next_multiple_of(alignment);
    // A file without tensors may end with its header.
    let start = if list.is_empty() { start.min(bytes.len()) } else { start };
    if start > bytes.len() {
        return Err(format!("the file ends before its tensors' values{INCOMPLETE}"));
    }
    Ok((metadata, place(list, alignment, start..bytes.len())?))
}

fn read_metadata(reader: &mut ByteReader, entries: usize) -> Result<BTreeMap<String, GgufValue>, String> {
    let mut metadata = BTreeMap::new();
    for index in 0..entries {
        let key = reader.name().map_err(|reason| format!("key {} of {entries}: {reason}", index + 1))?;
        let value = reader.value().map_err(|reason| format!("key `{key}`: {reason}"))?;
        if metadata.contains_key(&key) {
            return Err(format!("key `{key}` occurs twice"));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

/// What tensors are aligned to.
fn alignment(metadata: &BTreeMap<String, GgufValue>) -> Result<usize, String> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT) };
    match value.as_u64() {
        Some(bytes) if bytes.is_power_of_two() && bytes <= 1 << 20 => Ok(bytes as usize),
        _ => Err(format!("key `{ALIGNMENT_KEY}` is {value:?}; expected a power of two up to 1048576")),
    }
}

/// A tensor's description, before its place is known.
struct Description {
    name: String,
    dtype: GgmlType,
    shape: Vec<usize>,
    offset: u64,
    bytes: usize,
}

impl Description {
    fn read(reader: &mut ByteReader, index: usize) -> Result<Self, String> {
        let name = reader.name().map_err(|reason| format!("tensor {}: {reason}", index + 1))?;
        Self::of(reader, &name).map_err(|reason| format!("tensor `{name}`: {reason}"))
    }

    fn of(reader: &mut ByteReader, name: &str) -> Result<Self, String> {
        let dimensions = reader.u32()?;
        if !(1..=DIMENSIONS).contains(&dimensions) {
            return Err(format!("has {dimensions} dimensions; expected 1 to {DIMENSIONS}"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = reader.u64()?;
            shape.insert(0, usize::try_from(size).map_err(|_| format!("a dimension of {size} is too large"))?);
        }
        let number = reader.u32()?;
        let dtype = GgmlType::by_number(number).ok_or_else(|| format!("its type {number} is unknown"))?;
        let columns = shape.last().copied().unwrap_or(0);
        if columns == 0 || !columns.is_multiple_of(dtype.block_values) {
            return Err(format!("its rows of {columns} values do not fill blocks of {} ({dtype})", dtype.block_values));
        }
        let values = shape.iter().try_fold(1usize, |values, &size| values.checked_mul(size));
        let bytes = values.filter(|&values| values > 0).and_then(|values| dtype.bytes(values));
        let bytes = bytes.ok_or_else(|| format!("its shape {shape:?} is empty or too large"))?;
        Ok(Self { name: name.to_owned(), dtype, shape, offset: reader.u64()?, bytes })
    }
}

/// The tensors with their places within `data`, none of which overlap.
fn place(list: Vec<Description>, alignment: usize, data: Range<usize>) -> Result<BTreeMap<String, GgufEntry>, String> {
    let mut tensors = BTreeMap::new();
    for Description { name, dtype, shape, offset, bytes } in list {
        if !offset.is_multiple_of(alignment as u64) {
            return Err(format!("tensor `{name}`: its offset {offset} is not a multiple of {alignment}"));
        }
        let start = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(data.start));
        let end = start.and_then(|start| start.checked_add(bytes)).filter(|&end| end <= data.end);
        let (Some(start), Some(end)) = (start, end) else {
            let length = data.len();
            return Err(format!(
                "tensor `{name}`: {bytes} bytes at {offset} are beyond the {length} bytes of the data{INCOMPLETE}"
            ));
        };
        let entry = GgufEntry { dtype, shape, bytes: start..end };
        if tensors.contains_key(&name) {
            return Err(format!("tensor `{name}` occurs twice"));
        }
        tensors.insert(name, entry);
    }
    let mut places: Vec<_> = tensors.iter().map(|(name, entry)| (entry.bytes.clone(), name)).collect();
    places.sort_by_key(|(bytes, _)| bytes.start);
    match places.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
        Some(pair) => Err(format!("tensors `{}` and `{}` overlap", pair[0].1, pair[1].1)),
        None => Ok(tensors),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::gguf::{GgufHeader, GgufTensor, write_file};
    use crate::rng::Key;

    fn text(text: &str) -> GgufValue {
        GgufValue::Text(text.to_owned())
    }

    /// A small file: every type of value, and tensors of plain and of quantized values.
    fn small() -> Vec<u8> {
        let q4_0 = GgmlType::by_name("Q4_0").unwrap();
        let header = GgufHeader {
            metadata: vec![
                ("general.architecture".to_owned(), text("llama")),
                ("llama.block_count".to_owned(), GgufValue::U32(2)),
                ("a.bool".to_owned(), GgufValue::Bool(true)),
                ("a.f64".to_owned(), GgufValue::F64(0.5)),
                ("a.i64".to_owned(), GgufValue::I64(-1)),
                ("tokens".to_owned(), GgufValue::Array(vec![text("a"), text("é")])),
                ("nested".to_owned(), GgufValue::Array(vec![GgufValue::Array(vec![GgufValue::I16(3)])])),
            ],
            tensors: vec![
                GgufTensor { name: "q".to_owned(), shape: vec![2, 64], dtype: q4_0 },
                GgufTensor { name: "v".to_owned(), shape: vec![3], dtype: GgmlType::F32 },
            ],
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("small.gguf");
        write_file(&path, &header, |tensor| vec![tensor.name.as_bytes()[0]; tensor.bytes()]).unwrap();
        std::fs::read(path).unwrap()
    }

    fn read(bytes: &[u8]) -> Result<GgufFile, FormatError> {
        GgufFile::from_bytes("f.gguf", FileBytes::Owned(bytes.into()))
    }

    /// The bytes with the first occurrence of `from` replaced.
    fn with(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
        let at = bytes.windows(from.len()).position(|part| part == from).unwrap();
        [&bytes[..at], to, &bytes[at + from.len()..]].concat()
    }

    #[test]
    fn a_written_file_is_read_back() {
        let bytes = small();
        let file = read(&bytes).unwrap();
        assert_eq!(file.metadata()["tokens"], GgufValue::Array(vec![text("a"), text("é")]));
        assert_eq!(file.metadata()["nested"].as_array().unwrap()[0], GgufValue::Array(vec![GgufValue::I16(3)]));
        assert_eq!(file.metadata()["llama.block_count"].as_u64(), Some(2));
        let q = &file.tensors()["q"];
        assert_eq!((q.dtype.name, &q.shape[..], q.bytes.len()), ("Q4_0", &[2, 64][..], 72));
        assert!(file.bytes()[q.bytes.clone()].iter().all(|&byte| byte == b'q'));
        assert_eq!(q.bytes.start % 32, 0);
        let older = with(&bytes, b"GGUF\x03", b"GGUF\x02");
        assert_eq!(read(&older).unwrap().tensors(), file.tensors());
    }

    #[test]
    fn hostile_files_are_refused_with_file_and_key() {
        let bytes = small();
        let number = |value: u64| value.to_le_bytes();
        let huge = number(u64::MAX);
        let tokens = [b"tokens".as_slice(), &9u32.to_le_bytes(), &8u32.to_le_bytes()].concat();
        let counted = |count: u64| [tokens.as_slice(), &number(count)].concat();
        let cases: [(Vec<u8>, &str); 16] = [
            (b"PK\x03\x04".to_vec(), "not a GGUF file"),
            (with(&bytes, b"GGUF\x03", b"GGUF\x01"), "version 1"),
            (with(&bytes, b"GGUF\x03\0\0\0", b"GGUF\0\0\0\x03"), "big-endian"),
            (with(&bytes, &[&[3, 0, 0, 0][..], &number(2)].concat(), &[&[3, 0, 0, 0][..], &huge].concat()), "tensors"),
            (with(&bytes, &[number(2), number(7)].concat(), &[number(2), number(1 << 40)].concat()), "keys"),
            (with(&bytes, &counted(2), &counted(1 << 50)), "key `tokens`: 1125899906842624 values"),
            (with(&bytes, b"\x02\0\0\0\0\0\0\0\xc3\xa9", b"\x02\0\0\0\0\0\0\0\xc3\xff"), "key `tokens`: a text is not"),
            (with(&bytes, b"\x05\0\0\0\0\0\0\0llama", &[&huge[..], b"llama"].concat()), "key `general.architecture`"),
            (with(&bytes, b"a.f64", b"a.i64"), "key `a.i64` occurs twice"),
            (with(&bytes, b"a.bool\x07", b"a.bool\x63"), "key `a.bool`: the type 99"),
            (with(&bytes, b"q\x02\0\0\0", b"q\x07\0\0\0"), "tensor `q`: has 7 dimensions"),
            (with(&bytes, &[number(64), number(2)].concat(), &[number(64), huge].concat()), "tensor `q`: its shape"),
            (
                with(&bytes, &[number(64), number(2)].concat(), &[number(65), number(2)].concat()),
                "tensor `q`: its rows",
            ),
            (with(&bytes, &number(96), &number(1 << 40)), "tensor `v`: 12 bytes at 1099511627776 are beyond"),
            (with(&bytes, &number(96), &number(33)), "tensor `v`: its offset 33"),
            (with(&bytes, &number(96), &number(64)), "tensors `q` and `v` overlap"),
        ];
        for (hostile, expected) in cases {
            let error = read(&hostile).unwrap_err().to_string();
            assert!(error.starts_with("f.gguf: ") && error.contains(expected), "{expected}: {error}");
        }
        let key = |name: &[u8], value: u32| {
            [&number(name.len() as u64)[..], name, &4u32.to_le_bytes(), &value.to_le_bytes()].concat()
        };
        let blocks = key(b"llama.block_count", 2);
        for value in [0, 3, 1 << 21] {
            let error = read(&with(&bytes, &blocks, &key(b"general.alignment", value))).unwrap_err().to_string();
            assert!(error.contains("key `general.alignment`"), "{error}");
        }
    }

    /// Every cut of the file is refused, and no mutation of its header makes the reader panic or read outside the file.
    #[test]
    fn cut_and_mutated_files_do_no_harm() {
        let bytes = small();
        let whole = read(&bytes).unwrap();
        let (header, last) = (whole.tensors()["q"].bytes.start, whole.tensors()["v"].bytes.end);
        for cut in 0..last {
            assert!(read(&bytes[..cut]).is_err(), "{cut} of {} bytes", bytes.len());
        }
        for round in 0..20_000 {
            let mut draws = Key::new(round, "gguf").stream();
            let mut mutated = bytes.clone();
            for _ in 0..1 + draws.below(4) {
                let at = draws.below(header);
                mutated[at] = [0, 1, 0x7f, 0x80, 0xff, draws.below(256) as u8][draws.below(6)];
            }
            let Ok(file) = read(&mutated) else { continue };
            for entry in file.tensors().values() {
                assert_eq!(file.bytes()[entry.bytes.clone()].len(), entry.bytes.len());
            }
        }
    }
}
