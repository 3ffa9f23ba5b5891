//! A row-major matrix of finite f32 values, owned or still in its file.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};
use lorakit_format::mmap::FileBytes;
use pulp::{Arch, Simd, WithSimd};

use crate::error::{AdapterError, Result};

/// A matrix `[rows, cols]`, row-major, every value finite.
///
/// The values are either owned or stay in a memory-mapped safetensors file, which costs no memory until they are read.
/// Cloning shares them. That they are finite is checked once, on construction, so that no algorithm has to.
#[derive(Clone)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    storage: Storage,
}

#[derive(Clone)]
enum Storage {
    Owned(Arc<[f32]>),
    InFile(FileValues),
}

/// Little-endian floats within a file.
#[derive(Clone)]
struct FileValues {
    file: FileBytes,
    bytes: Range<usize>,
    precision: Precision,
}

/// The floating-point types in which adapters are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    F32,
    F16,
    Bf16,
}

impl Precision {
    fn width(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl Matrix {
    /// A matrix that owns its values, given row by row.
    ///
    /// # Errors
    /// If there are not `rows * cols` values, or one of them is NaN or infinite.
    pub fn new(rows: usize, cols: usize, values: Vec<f32>) -> Result<Self> {
        if rows.checked_mul(cols) != Some(values.len()) {
            let found = values.len();
            return Err(AdapterError::Shape(format!("a matrix [{rows}, {cols}] was given {found} values")));
        }
        let matrix = Self { rows, cols, storage: Storage::Owned(values.into()) };
        matrix.ensure_finite()?;
        Ok(matrix)
    }

    /// A matrix whose values stay in `file`, at the byte range `bytes`.
    pub(crate) fn in_file(
        shape: [usize; 2],
        file: FileBytes,
        bytes: Range<usize>,
        precision: Precision,
    ) -> Result<Self> {
        let [rows, cols] = shape;
        let expected = rows.checked_mul(cols).and_then(|count| count.checked_mul(precision.width()));
        if expected != Some(bytes.len()) || bytes.end > file.len() {
            let found = bytes.len();
            return Err(AdapterError::Shape(format!(
                "a matrix [{rows}, {cols}] of {precision:?} does not fill {found} bytes"
            )));
        }
        let matrix = Self { rows, cols, storage: Storage::InFile(FileValues { file, bytes, precision }) };
        matrix.ensure_finite()?;
        Ok(matrix)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The values, row by row: borrowed where they are f32, in memory or in the file, converted from 16 bits otherwise.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match &self.storage {
            Storage::Owned(values) => Cow::Borrowed(values),
            Storage::InFile(stored) => stored.values(),
        }
    }

    /// The same with rows and columns exchanged.
    pub fn transposed(&self) -> Self {
        let values = self.values();
        let of_column = |column: usize| values.iter().skip(column).step_by(self.cols).copied();
        let transposed: Vec<f32> = (0..self.cols).flat_map(of_column).collect();
        Self { rows: self.cols, cols: self.rows, storage: Storage::Owned(transposed.into()) }
    }

    /// The file that the values are in, if they are not owned.
    pub(crate) fn file(&self) -> Option<&FileBytes> {
        match &self.storage {
            Storage::Owned(_) => None,
            Storage::InFile(stored) => Some(&stored.file),
        }
    }

    fn ensure_finite(&self) -> Result<()> {
        if self.storage.is_finite() {
            return Ok(());
        }
        let values = self.values();
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (row, column) = (at / self.cols, at % self.cols);
            return Err(AdapterError::NotFinite { row, column, value: values[at] });
        }
        Ok(())
    }
}

impl Storage {
    /// Whether every value is finite: its exponent, as it is stored, is not the largest.
    fn is_finite(&self) -> bool {
        const F32: u32 = 0x7f80_0000;
        match self {
            Self::Owned(values) => none_has_all(values.iter().map(|value| value.to_bits()), F32),
            Self::InFile(stored) => {
                let bytes = &stored.file[stored.bytes.clone()];
                let pairs = || bytes.as_chunks().0.iter().map(|pair| u32::from(u16::from_le_bytes(*pair)));
                match stored.precision {
                    Precision::F32 => {
                        none_has_all(bytes.as_chunks().0.iter().map(|value| u32::from_le_bytes(*value)), F32)
                    }
                    Precision::F16 => none_has_all(pairs(), 0x7c00),
                    Precision::Bf16 => none_has_all(pairs(), F32 >> 16),
                }
            }
        }
    }
}

/// Whether none of the values has all of `bits`.
fn none_has_all(values: impl Iterator<Item = u32>, bits: u32) -> bool {
    Arch::new().dispatch(LargestOf { values, bits }) < bits
}

/// The largest of the values, of each of which only `bits` count. It ends no sooner for a value that has them all, so that
/// the compiler can use vectors: whole libraries pass through here.
struct LargestOf<I> {
    values: I,
    bits: u32,
}

impl<I: Iterator<Item = u32>> WithSimd for LargestOf<I> {
    type Output = u32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> u32 {
        self.values.fold(0, |largest, value| largest.max(value & self.bits))
    }
}

impl FileValues {
    fn values(&self) -> Cow<'_, [f32]> {
        let bytes = &self.file[self.bytes.clone()];
        match self.precision {
            Precision::F32 => in_place(bytes).map_or_else(|| to_f32(bytes, f32::from_le_bytes), Cow::Borrowed),
            Precision::F16 => to_f32(bytes, |pair| f16::from_le_bytes(pair).to_f32()),
            Precision::Bf16 => to_f32(bytes, |pair| bf16::from_le_bytes(pair).to_f32()),
        }
    }
}

/// The bytes as f32, without a copy, where alignment and byte order allow it.
fn in_place(bytes: &[u8]) -> Option<&[f32]> {
    // SAFETY: every bit pattern is a valid f32, and `align_to` hands out only the aligned middle.
    let (before, values, after) = unsafe { bytes.align_to::<f32>() };
    (cfg!(target_endian = "little") && before.is_empty() && after.is_empty()).then_some(values)
}

fn to_f32<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Cow<'_, [f32]> {
    let (values, _) = bytes.as_chunks::<N>();
    Cow::Owned(values.iter().map(|value| read(*value)).collect())
}

impl fmt::Debug for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix [{}, {}]", self.rows, self.cols)
    }
}

impl PartialEq for Matrix {
    /// Equal shapes and equal values, wherever they are stored.
    fn eq(&self, other: &Self) -> bool {
        (self.rows, self.cols) == (other.rows, other.cols) && self.values() == other.values()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn mapped(bytes: &[u8], precision: Precision, range: Range<usize>, shape: [usize; 2]) -> Result<Matrix> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        Matrix::in_file(shape, FileBytes::map(file.path()).unwrap(), range, precision)
    }

    #[test]
    fn mapped_values_are_those_that_were_stored_in_any_precision_and_alignment() {
        let stored = [1.5f32, -2.0, 0.25, 8.0];
        let wide: Vec<u8> = stored.iter().flat_map(|v| v.to_le_bytes()).collect();
        let half: Vec<u8> = stored.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        let brain: Vec<u8> = stored.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let odd: Vec<u8> = std::iter::once(0).chain(wide.clone()).collect();
        for matrix in [
            mapped(&wide, Precision::F32, 0..16, [2, 2]),
            mapped(&odd, Precision::F32, 1..17, [2, 2]),
            mapped(&half, Precision::F16, 0..8, [2, 2]),
            mapped(&brain, Precision::Bf16, 0..8, [2, 2]),
        ] {
            assert_eq!(matrix.unwrap().values().as_ref(), stored);
        }
    }

    #[test]
    fn aligned_f32_values_are_borrowed_from_the_file() {
        let bytes: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert!(matches!(mapped(&bytes, Precision::F32, 0..8, [1, 2]).unwrap().values(), Cow::Borrowed(_)));
    }

    #[test]
    fn a_value_that_is_not_finite_is_refused_with_its_position() {
        let error = Matrix::new(2, 2, vec![0.0, 1.0, f32::NAN, 2.0]).unwrap_err().to_string();
        assert!(error.contains("row 1, column 0 is NaN"), "{error}");
        assert!(Matrix::new(1, 1, vec![f32::INFINITY]).is_err());
        assert!(Matrix::new(1, 4, vec![f32::MAX, f32::MIN, f32::MIN_POSITIVE / 2.0, -0.0]).is_ok());
    }

    /// At every place of more values than a vector has.
    #[test]
    fn a_mapped_value_that_is_not_finite_is_refused_in_any_precision() {
        const COUNT: usize = 67;
        fn bytes<const N: usize>(value: impl Fn(usize) -> [u8; N]) -> Vec<u8> {
            (0..COUNT).flat_map(value).collect()
        }
        let wide = |at: usize, bad: f32| bytes(|i| if i == at { bad } else { f32::MAX }.to_le_bytes());
        let half = |at: usize, bad: f32| bytes(|i| if i == at { f16::from_f32(bad) } else { f16::MIN }.to_le_bytes());
        let brain =
            |at: usize, bad: f32| bytes(|i| if i == at { bf16::from_f32(bad) } else { bf16::MAX }.to_le_bytes());
        for at in 0..=COUNT {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for (stored, precision) in [
                    (wide(at, bad), Precision::F32),
                    (half(at, bad), Precision::F16),
                    (brain(at, bad), Precision::Bf16),
                ] {
                    match mapped(&stored, precision, 0..stored.len(), [1, COUNT]) {
                        Ok(_) => assert_eq!(at, COUNT, "{bad} {precision:?}"),
                        Err(error) => assert!(error.to_string().contains(&format!("column {at} is")), "{error}"),
                    }
                }
            }
        }
    }

    #[test]
    fn shapes_that_do_not_fit_the_values_are_refused() {
        assert!(Matrix::new(2, 3, vec![0.0; 5]).is_err());
        assert!(Matrix::new(usize::MAX, 2, vec![]).is_err());
        assert!(mapped(&[0; 8], Precision::F32, 0..8, [1, 3]).is_err());
    }
}
