//! Writing a GGUF file, version 3.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::atomic::write_file_by;
use crate::error::FormatError;
use crate::gguf::ggml_type::GgmlType;
use crate::gguf::gguf_layout::{ALIGNMENT, MAGIC};
use crate::gguf::gguf_value::{GgufValue, put_text};

/// The version of the format.
const VERSION: u32 = 3;

/// A tensor as the header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its dimensions, the last one contiguous, as in safetensors; the file has them in reverse.
    pub shape: Vec<usize>,
    /// The type of its values.
    pub dtype: GgmlType,
}

/// What a file says before its values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufHeader {
    /// The metadata, in order.
    pub metadata: Vec<(String, GgufValue)>,
    /// The tensors, in the order of their values.
    pub tensors: Vec<GgufTensor>,
}

impl GgufTensor {
    /// The size of its values in bytes; its rows are whole blocks.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.dtype.block_values * self.dtype.block_bytes
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
            out.extend(value.type_number().to_le_bytes());
            value.put(&mut out);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            put_text(&tensor.name, &mut out);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|&size| out.extend((size as u64).to_le_bytes()));
            out.extend(tensor.dtype.number.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += tensor.bytes().next_multiple_of(ALIGNMENT);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        out
    }
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
                GgufTensor { name: "a".to_owned(), shape: vec![2, 3], dtype: GgmlType::F32 },
                GgufTensor { name: "b".to_owned(), shape: vec![4], dtype: GgmlType::F16 },
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
