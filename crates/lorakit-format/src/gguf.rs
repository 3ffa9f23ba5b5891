//! GGUF files (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), version 3, little-endian: metadata by key, then
//! tensors by name, whose values are aligned.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::atomic::write_file_by;
use crate::error::FormatError;

/// What a file starts with.
const MAGIC: &[u8; 4] = b"GGUF";

/// The version of the format.
const VERSION: u32 = 3;

/// What a tensor's place in the data is a multiple of, where `general.alignment` says nothing else.
const ALIGNMENT: usize = 32;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// `UINT8`.
    U8(u8),
    /// `INT8`.
    I8(i8),
    /// `UINT16`.
    U16(u16),
    /// `INT16`.
    I16(i16),
    /// `UINT32`.
    U32(u32),
    /// `INT32`.
    I32(i32),
    /// `FLOAT32`.
    F32(f32),
    /// `BOOL`.
    Bool(bool),
    /// `STRING`.
    Text(String),
    /// `ARRAY`, of values of one type.
    Array(Vec<GgufValue>),
    /// `UINT64`.
    U64(u64),
    /// `INT64`.
    I64(i64),
    /// `FLOAT64`.
    F64(f64),
}

/// The type of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufDtype {
    /// `GGML_TYPE_F32`.
    F32,
    /// `GGML_TYPE_F16`.
    F16,
    /// `GGML_TYPE_BF16`.
    Bf16,
}

/// A tensor as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, the last one contiguous, as in safetensors; the file has them in reverse.
    pub shape: Vec<usize>,
    /// The type of its values.
    pub dtype: GgufDtype,
}

/// What a file says before its values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufHeader {
    /// The metadata, in order.
    pub metadata: Vec<(String, GgufValue)>,
    /// The tensors, in the order of their values.
    pub tensors: Vec<GgufTensor>,
}

impl GgufValue {
    /// The number of its type in the file.
    fn type_id(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::Array(_) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    /// Appends the value without its type.
    fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(value) => out.extend(value.to_le_bytes()),
            Self::I8(value) => out.extend(value.to_le_bytes()),
            Self::U16(value) => out.extend(value.to_le_bytes()),
            Self::I16(value) => out.extend(value.to_le_bytes()),
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Text(value) => put_text(value, out),
            Self::Array(values) => {
                // An empty array has no type of its own; any will do.
                out.extend(values.first().map_or(0, Self::type_id).to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| value.put(out));
            }
            Self::U64(value) => out.extend(value.to_le_bytes()),
            Self::I64(value) => out.extend(value.to_le_bytes()),
            Self::F64(value) => out.extend(value.to_le_bytes()),
        }
    }
}

impl GgufDtype {
    /// The number of the type in the file.
    fn type_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 30,
        }
    }

    /// The size of `values` values in bytes.
    fn bytes(self, values: usize) -> usize {
        match self {
            Self::F32 => 4 * values,
            Self::F16 | Self::Bf16 => 2 * values,
        }
    }
}

impl GgufTensor {
    /// The size of its values in bytes.
    pub fn bytes(&self) -> usize {
        self.dtype.bytes(self.shape.iter().product())
    }
}

impl GgufHeader {
    /// The header's bytes, up to where the values begin.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(key, &mut out);
            out.extend(value.type_id().to_le_bytes());
            value.put(&mut out);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_text(&tensor.name, &mut out);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&size| out.extend((size as u64).to_le_bytes()));
            out.extend(tensor.dtype.type_id().to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes().next_multiple_of(ALIGNMENT);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Writes a GGUF file; `values` gives the bytes of each tensor of `header` when its turn comes. The file appears whole.
///
/// # Errors
/// If a tensor's bytes are not as many as the header says, or the file cannot be written.
pub fn write_file(
    path: &Path,
    header: &GgufHeader,
    mut values: impl FnMut(&GgufTensor) -> Vec<u8>,
) -> Result<(), FormatError> {
    write_file_by(path, |temporary| -> io::Result<()> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(temporary)?);
        out.write_all(&header.to_bytes())?;
        for tensor in &header.tensors {
            let mut bytes = values(tensor);
            if bytes.len() != tensor.bytes() {
                let (name, expected, found) = (&tensor.name, tensor.bytes(), bytes.len());
                return Err(io::Error::other(format!("tensor `{name}`: expected {expected} bytes, found {found}")));
            }
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            out.write_all(&bytes)?;
        }
        out.flush()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn header() -> GgufHeader {
        let text = |text: &str| GgufValue::Text(text.to_owned());
        GgufHeader {
            metadata: vec![
                ("general.type".to_owned(), text("adapter")),
                ("alpha".to_owned(), GgufValue::F32(16.0)),
                ("languages".to_owned(), GgufValue::Array(vec![text("en"), text("fr")])),
            ],
            tensors: vec![
                GgufTensor { name: "a".to_owned(), shape: vec![2, 3], dtype: GgufDtype::F32 },
                GgufTensor { name: "b".to_owned(), shape: vec![4], dtype: GgufDtype::F16 },
            ],
        }
    }

    #[test]
    fn values_are_aligned_and_dimensions_reversed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.gguf");
        write_file(&path, &header(), |tensor| vec![tensor.name.as_bytes()[0]; tensor.bytes()]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((&bytes[..4], bytes[4], word(8), word(16)), (&b"GGUF"[..], 3, 2, 3));
        // The first key: its length, its text, the type of its value (8, a text), the value's length.
        assert_eq!((word(24), &bytes[32..44], bytes[44], word(48)), (12, &b"general.type"[..], 8, 7));
        let first = bytes.windows(13).position(|part| part == b"\x01\0\0\0\0\0\0\0a\x02\0\0\0").unwrap();
        assert_eq!((word(first + 13), word(first + 21)), (3, 2), "the contiguous dimension comes first");
        let data = bytes.len() - 64;
        assert_eq!(data % 32, 0);
        assert!(bytes[data..data + 24].iter().all(|&byte| byte == b'a') && bytes[data + 24..data + 32] == [0; 8]);
        assert_eq!((&bytes[data + 32..data + 40], &bytes[data + 40..]), (&[b'b'; 8][..], &[0; 24][..]));
    }

    #[test]
    fn a_tensor_of_another_size_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = write_file(&folder.path().join("t.gguf"), &header(), |_| vec![0; 3]).unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("`a`: expected 24 bytes, found 3"), "{source}");
    }
}
