//! A frozen matrix whose values stay in its mapped file, and are widened to f32 where they are read. They may be quantized:
//! their blocks are then dequantized instead. Its products are those of `matrix_products`.

use crate::error::{ModelError, Result};
use crate::weights::bitsandbytes::FourBitMatrix;
use crate::weights::block_quantization::BlockType;
use crate::weights::half_precision::{widen_bf16, widen_f16};
use crate::weights::storage_dtype::StorageDtype;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use lorakit_format::mmap::FileBytes;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// A frozen matrix `[rows, columns]`, row-major. Cloning shares its values.
#[derive(Clone)]
pub struct MmapMatrix {
    values: Values,
    rows: usize,
    columns: usize,
    /// Where each row is stored, if not in order.
    order: Option<Arc<[u32]>>,
}

#[derive(Clone)]
enum Values {
    /// A range of a file, or of values that were rounded, aligned for its type.
    File(FileBytes, Range<usize>, StorageDtype),
    /// Values in memory: those of a file that were not aligned, or the caller's.
    F32(Arc<[f32]>),
    /// A range of a file with quantized rows of whole blocks, at any address.
    Blocks(FileBytes, Range<usize>, BlockType),
    /// Values in the 4 bits of bitsandbytes, whose blocks may begin within rows.
    FourBit(Arc<FourBitMatrix>),
}

/// Some rows of a matrix in the type that they are stored in.
pub(super) enum Slice<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
    F16(&'a [f16]),
}

/// Reads aligned bytes as values of `T`.
///
/// # Safety
/// Every bit pattern must be a `T`.
unsafe fn reinterpret<T>(bytes: &[u8]) -> &[T] {
    debug_assert_eq!(bytes.as_ptr().align_offset(align_of::<T>()), 0);
    // SAFETY: the caller guarantees the bit patterns, `MmapMatrix::new` the alignment, and the length is rounded down.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
}

impl MmapMatrix {
    /// The `rows * columns` values of type `dtype` in `range` of `bytes`.
    ///
    /// # Errors
    /// If the range has another size, or is not within the bytes.
    pub fn new(
        bytes: FileBytes,
        range: Range<usize>,
        dtype: StorageDtype,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        if range.end > bytes.len() || range.len() != rows * columns * dtype.size() {
            return Err(ModelError::Size { values: range.len() / dtype.size(), rows, columns });
        }
        let body = &bytes[range.clone()];
        let values = if body.as_ptr().align_offset(dtype.size()) == 0 {
            Values::File(bytes, range, dtype)
        } else {
            Values::F32(widen_unaligned(body, dtype).into())
        };
        Ok(Self { values, rows, columns, order: None })
    }

    /// The quantized rows, of whole blocks of `block_type`, in `range` of `bytes`.
    ///
    /// # Errors
    /// If the range has another size, or is not within the bytes.
    pub fn of_blocks(
        bytes: FileBytes,
        range: Range<usize>,
        block_type: BlockType,
        rows: usize,
        columns: usize,
    ) -> Result<Self> {
        let (values, size) = (block_type.block_values(), block_type.block_bytes());
        let is_whole = columns.is_multiple_of(values) && range.len() == rows * (columns / values) * size;
        if range.end > bytes.len() || !is_whole {
            return Err(ModelError::Size { values: range.len() / size * values, rows, columns });
        }
        Ok(Self { values: Values::Blocks(bytes, range, block_type), rows, columns, order: None })
    }

    /// A matrix in the 4 bits of bitsandbytes.
    pub(crate) fn of_four_bits(matrix: FourBitMatrix) -> Self {
        let [rows, columns] = *matrix.shape();
        Self { values: Values::FourBit(Arc::new(matrix)), rows, columns, order: None }
    }

    /// The same values with other rows: row `r` is the one that is now row `order[r]`.
    ///
    /// # Panics
    /// If `order` is not one of all rows: a bug of the caller.
    pub fn with_row_order(self, order: Arc<[u32]>) -> Self {
        assert!(
            order.len() == self.rows && order.iter().all(|&row| (row as usize) < self.rows),
            "an order of the rows"
        );
        Self { order: Some(order), ..self }
    }

    /// A matrix of the caller's values.
    ///
    /// # Errors
    /// If there are more or fewer than `rows * columns` values.
    pub fn from_values(values: Vec<f32>, rows: usize, columns: usize) -> Result<Self> {
        if values.len() != rows * columns {
            return Err(ModelError::Size { values: values.len(), rows, columns });
        }
        Ok(Self { values: Values::F32(values.into()), rows, columns, order: None })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values as f32: borrowed if they are stored so, else widened.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self.plain_f32() {
            Some(values) => values.into(),
            None => {
                let mut wide = vec![0.0; self.rows * self.columns];
                self.widen_rows(0..self.rows, &mut wide);
                wide.into()
            }
        }
    }

    /// The type that its values are stored in; those of quantized blocks are f32, and those in the 4 bits of bitsandbytes were
    /// rounded to a type.
    pub fn storage_dtype(&self) -> StorageDtype {
        match &self.values {
            Values::File(_, _, dtype) => *dtype,
            Values::F32(_) | Values::Blocks(..) => StorageDtype::F32,
            Values::FourBit(matrix) => matrix.dtype(),
        }
    }

    /// The type of its blocks, if it is quantized.
    pub fn block_type(&self) -> Option<BlockType> {
        if let Values::Blocks(_, _, block_type) = self.values { Some(block_type) } else { None }
    }

    /// Values of the blocks that its rows are made of, if it is quantized and they are.
    pub(super) fn block_values(&self) -> Option<usize> {
        match &self.values {
            Values::Blocks(_, _, block_type) => Some(block_type.block_values()),
            Values::FourBit(matrix) => matrix.short_block(),
            Values::File(..) | Values::F32(_) => None,
        }
    }

    /// A row as f32, written to `row`.
    pub fn copy_row(&self, index: usize, row: &mut [f32]) {
        self.widen_rows(index..index + 1, row);
    }

    /// The values as a tensor.
    pub fn to_tensor(&self, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Tensor::from_slice(&self.values(), (self.rows, self.columns), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }

    /// All values in f32, if they are stored so and in order.
    pub(super) fn plain_f32(&self) -> Option<&[f32]> {
        if let Some(Slice::F32(values)) = self.ordered_slice(0..self.rows) { Some(values) } else { None }
    }

    /// Some rows as they are stored, unless they are quantized.
    fn slice(&self, rows: Range<usize>) -> Option<Slice<'_>> {
        let (start, end) = (rows.start * self.columns, rows.end * self.columns);
        Some(match &self.values {
            Values::F32(values) => Slice::F32(&values[start..end]),
            Values::File(bytes, range, dtype) => {
                let size = dtype.size();
                let body = &bytes[range.start + start * size..range.start + end * size];
                // SAFETY: `new` checked the alignment, and every bit pattern is a value of each of these types.
                unsafe {
                    match dtype {
                        StorageDtype::F32 => Slice::F32(reinterpret(body)),
                        StorageDtype::F16 => Slice::F16(reinterpret(body)),
                        StorageDtype::BF16 => Slice::BF16(reinterpret(body)),
                    }
                }
            }
            Values::Blocks(..) | Values::FourBit(_) => return None,
        })
    }

    /// The same of rows that are stored in order.
    pub(super) fn ordered_slice(&self, rows: Range<usize>) -> Option<Slice<'_>> {
        if self.order.is_none() { self.slice(rows) } else { None }
    }

    /// One row as it is stored, unless it is quantized.
    pub(super) fn row_slice(&self, row: usize) -> Option<Slice<'_>> {
        let stored = self.order.as_ref().map_or(row, |order| order[row] as usize);
        self.slice(stored..stored + 1)
    }

    /// Where each row is stored, if not in order.
    pub(super) fn order(&self) -> Option<&[u32]> {
        self.order.as_deref()
    }

    /// The type of its blocks and some of its stored rows, if it is quantized.
    pub(super) fn stored_blocks(&self, rows: Range<usize>) -> Option<(BlockType, &[u8])> {
        let Values::Blocks(bytes, range, block_type) = &self.values else { return None };
        let row = self.columns / block_type.block_values() * block_type.block_bytes();
        Some((*block_type, &bytes[range.start + rows.start * row..range.start + rows.end * row]))
    }

    /// Some rows as f32, `[rows, columns of the matrix]`.
    pub(super) fn widen_rows(&self, rows: Range<usize>, wide: &mut [f32]) {
        if self.order.is_none() && !rows.is_empty() {
            return self.widen_stored(rows, 0..self.columns, wide);
        }
        for (row, wide) in rows.zip(wide.chunks_exact_mut(self.columns)) {
            self.widen_part(row, 0..self.columns, wide);
        }
    }

    /// Some columns of a row as f32; of a quantized row, those of whole blocks.
    pub(super) fn widen_part(&self, row: usize, columns: Range<usize>, wide: &mut [f32]) {
        let stored = self.order.as_ref().map_or(row, |order| order[row] as usize);
        self.widen_stored(stored..stored + 1, columns, wide);
    }

    /// Some columns of some rows, widened into `wide`, `[rows, columns]`.
    pub(super) fn widen_columns(&self, rows: Range<usize>, columns: &Range<usize>, wide: &mut Vec<f32>) {
        wide.resize(rows.len() * columns.len(), 0.0);
        for (row, wide) in rows.zip(wide.chunks_exact_mut(columns.len())) {
            self.widen_part(row, columns.clone(), wide);
        }
    }

    /// Some stored rows, or some columns of one, as f32.
    fn widen_stored(&self, rows: Range<usize>, columns: Range<usize>, wide: &mut [f32]) {
        let count = rows.len().saturating_sub(1) * self.columns + columns.len();
        if let Values::Blocks(bytes, range, block_type) = &self.values {
            let start = rows.start * self.columns + columns.start;
            let place = |value: usize| range.start + value / block_type.block_values() * block_type.block_bytes();
            return block_type.dequantize(&bytes[place(start)..place(start + count)], wide);
        }
        if let Values::FourBit(matrix) = &self.values {
            let start = rows.start * self.columns + columns.start;
            return matrix.widen(start..start + count, wide);
        }
        if let Some(slice) = self.slice(rows) {
            slice.part(columns.start..columns.start + count).widen(wide);
        }
    }
}

/// The values of bytes at any address, as f32.
fn widen_unaligned(bytes: &[u8], dtype: StorageDtype) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match dtype {
        StorageDtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        StorageDtype::F16 => pairs().map(|b| f16::from_bits(b).to_f32()).collect(),
        StorageDtype::BF16 => pairs().map(|b| bf16::from_bits(b).to_f32()).collect(),
    }
}

impl<'a> Slice<'a> {
    fn part(&self, range: Range<usize>) -> Slice<'a> {
        match *self {
            Self::F32(v) => Self::F32(&v[range]),
            Self::BF16(v) => Self::BF16(&v[range]),
            Self::F16(v) => Self::F16(&v[range]),
        }
    }

    fn widen(&self, wide: &mut [f32]) {
        match self {
            Self::F32(values) => wide.copy_from_slice(values),
            Self::BF16(values) => widen_bf16(values, wide),
            Self::F16(values) => widen_f16(values, wide),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// Small whole numbers: their sums are exact in any order.
    pub(in super::super) fn numbers(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    pub(in super::super) fn weight(dtype: StorageDtype, rows: usize, columns: usize) -> MmapMatrix {
        MmapMatrix::from_values(numbers(rows * columns, 7), rows, columns).unwrap().rounded_to(dtype).unwrap()
    }

    /// The same matrix with its rows in reverse.
    pub(in super::super) fn reversed(matrix: &MmapMatrix) -> MmapMatrix {
        matrix.clone().with_row_order((0..matrix.rows as u32).rev().collect())
    }

    /// Blocks of Q8_0 with whole numbers for values and a scale of one.
    pub(in super::super) fn blocks(rows: usize, columns: usize) -> MmapMatrix {
        let values: Vec<u8> = numbers(rows * columns, 7).into_iter().map(|value| value as i8 as u8).collect();
        let bytes = values.chunks_exact(32).flat_map(|block| [&f16::ONE.to_le_bytes()[..], block].concat());
        // An odd address: blocks are not aligned.
        let bytes: Vec<u8> = [9].into_iter().chain(bytes).collect();
        let range = 1..bytes.len();
        MmapMatrix::of_blocks(FileBytes::Owned(bytes.into()), range, BlockType::Q8_0, rows, columns).unwrap()
    }

    #[test]
    fn rows_are_found_by_their_order() {
        let (plain, quantized) = (weight(StorageDtype::F32, 4, 64), blocks(4, 64));
        assert_eq!(plain.values(), quantized.values());
        for dtype in [StorageDtype::F32, StorageDtype::BF16, StorageDtype::F16] {
            let matrix = reversed(&plain.rounded_to(dtype).unwrap());
            assert_eq!(matrix.values(), reversed(&quantized).values());
            let mut row = vec![0.0; 64];
            matrix.copy_row(3, &mut row);
            assert_eq!(row, plain.values()[..64]);
        }
    }
}
