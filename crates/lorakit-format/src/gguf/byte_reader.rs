//! Reads the parts of a GGUF header from bytes that may be anything. What fails says why, without the file's name.

use crate::gguf::gguf_value::GgufValue;

/// The longest key or name of a tensor, in bytes: the format's own limit.
const NAME_LIMIT: u64 = u16::MAX as u64;

/// The longest text of the metadata, in bytes. Chat templates have up to a hundred thousand.
const TEXT_LIMIT: u64 = 1 << 24;

/// How many values all arrays may have together: four times those of the largest vocabularies with their merges.
const ARRAY_VALUES: usize = 1 << 23;

/// How deep arrays may be in arrays. No known file has any.
const ARRAY_DEPTH: usize = 4;

/// What to do about a file that ends too early.
pub(super) const INCOMPLETE: &str =
    "; the file is incomplete or damaged: if it was downloaded or copied, do that again";

/// A place in the bytes of a file.
pub(super) struct ByteReader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How many more values arrays may have.
    array_values: usize,
}

impl<'a> ByteReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, array_values: ARRAY_VALUES }
    }

    /// How many bytes were read.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.bytes[self.at..].first_chunk().ok_or_else(|| self.too_short(N as u64))?;
        self.at += N;
        Ok(*bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, String> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, String> {
        self.array().map(u64::from_le_bytes)
    }

    /// A number of things that take at least `bytes` bytes each.
    pub(super) fn count(&mut self, bytes: usize, things: &str) -> Result<usize, String> {
        let count = self.u64()?;
        if count > (self.left() / bytes) as u64 {
            let left = self.left();
            return Err(format!("{count} {things} do not fit into the {left} bytes that are left{INCOMPLETE}"));
        }
        Ok(count as usize)
    }

    /// A key, or the name of a tensor.
    pub(super) fn name(&mut self) -> Result<String, String> {
        let name = self.text(NAME_LIMIT)?;
        if name.is_empty() { Err("has no name".to_owned()) } else { Ok(name) }
    }

    fn text(&mut self, limit: u64) -> Result<String, String> {
        let length = self.u64()?;
        if length > limit {
            return Err(format!("a text of {length} bytes is longer than the limit of {limit}"));
        }
        let rest = &self.bytes[self.at..];
        let text = rest.get(..length as usize).ok_or_else(|| self.too_short(length))?;
        self.at += length as usize;
        String::from_utf8(text.to_vec()).map_err(|_| "a text is not UTF-8".to_owned())
    }

    /// A value with its type.
    pub(super) fn value(&mut self) -> Result<GgufValue, String> {
        let number = self.u32()?;
        self.value_of(number, 0)
    }

    /// A value of the type of that number, within so many arrays.
    fn value_of(&mut self, number: u32, depth: usize) -> Result<GgufValue, String> {
        Ok(match number {
            0 => GgufValue::U8(u8::from_le_bytes(self.array()?)),
            1 => GgufValue::I8(i8::from_le_bytes(self.array()?)),
            2 => GgufValue::U16(u16::from_le_bytes(self.array()?)),
            3 => GgufValue::I16(i16::from_le_bytes(self.array()?)),
            4 => GgufValue::U32(self.u32()?),
            5 => GgufValue::I32(i32::from_le_bytes(self.array()?)),
            6 => GgufValue::F32(f32::from_le_bytes(self.array()?)),
            7 => GgufValue::Bool(self.array::<1>()? != [0]),
            8 => GgufValue::Text(self.text(TEXT_LIMIT)?),
            9 => GgufValue::Array(self.values(depth + 1)?),
            10 => GgufValue::U64(self.u64()?),
            11 => GgufValue::I64(i64::from_le_bytes(self.array()?)),
            12 => GgufValue::F64(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("the type {other} of its value is unknown")),
        })
    }

    /// The values of an array.
    fn values(&mut self, depth: usize) -> Result<Vec<GgufValue>, String> {
        if depth > ARRAY_DEPTH {
            return Err(format!("has arrays within arrays to more than {ARRAY_DEPTH} levels"));
        }
        let number = self.u32()?;
        let count = self.count(smallest_value(number), "values of an array")?;
        self.array_values = self.array_values.checked_sub(count).ok_or_else(|| {
            format!("an array of {count} values: the arrays of a file may have {ARRAY_VALUES} values together")
        })?;
        // The file holds at least as many bytes, so that this does not reserve more than a hostile header paid for.
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(self.value_of(number, depth)?);
        }
        Ok(values)
    }

    fn too_short(&self, expected: u64) -> String {
        format!("the file ends after {} of {expected} bytes that are expected here{INCOMPLETE}", self.left())
    }
}

/// The fewest bytes of a value of the type of that number.
fn smallest_value(number: u32) -> usize {
    match number {
        2 | 3 => 2,
        4..=6 => 4,
        8 | 10..=12 => 8,
        9 => 12,
        _ => 1,
    }
}
