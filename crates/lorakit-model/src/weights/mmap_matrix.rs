//! A frozen matrix whose values stay in its mapped file and are widened tile by tile inside each product. They may be
//! quantised: their blocks are then dequantised instead.

use crate::error::{ModelError, Result};
use crate::weights::bitsandbytes::FourBitMatrix;
use crate::weights::block_quantization::{BlockType, EightBitTokens};
use crate::weights::few_tokens::{FEW, RowProducts, WrittenRowProducts};
use crate::weights::half_precision::{bf16_as_f32, round_to_bf16, round_to_f16, widen_bf16, widen_f16};
use crate::weights::storage_dtype::StorageDtype;
use crate::weights::token_lanes::{self, LaneProducts, RowSource, TokenLanes};
use crate::weights::token_precision::TokenPrecision;
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use lorakit_format::mmap::FileBytes;
use lorakit_lora::kernels::gemm::{Destination, MatrixMut, MatrixRef, PARALLEL_WORK, gemm, par_gemm};
use lorakit_lora::kernels::simd;
use rayon::prelude::*;
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
    /// A range of a file, aligned for its type.
    File(FileBytes, Range<usize>, StorageDtype),
    /// Values in memory: those of a file that were not aligned, or the caller's.
    F32(Arc<[f32]>),
    /// Values that were rounded to bf16.
    Bf16(Arc<Vec<bf16>>),
    /// Values that were rounded to f16.
    F16(Arc<Vec<f16>>),
    /// A range of a file with quantised rows of whole blocks, at any address.
    Blocks(FileBytes, Range<usize>, BlockType),
    /// Values in the 4 bits of bitsandbytes, whose blocks may begin within rows.
    FourBit(Arc<FourBitMatrix>),
}

/// Some rows of a matrix in the type that they are stored in.
enum Slice<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
    F16(&'a [f16]),
}

/// Rows (forward) or columns (backward) of a 16-bit matrix that are widened at a time, so that a tile stays in its core's
/// cache while all tokens are multiplied with it.
const TILE: usize = 96;

/// Rows that are multiplied with few tokens at a time: few enough that threads end together.
const FEW_ROWS: usize = 32;

/// Quantised rows that the backward dequantises at a time, for the same reason.
const BLOCK_ROWS: usize = 256;

/// Rows of a tile of columns (backward): of a head of 262,144 rows, a whole one would take 64 MiB per thread.
const TILE_ROWS: usize = 4096;

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

    /// The quantised rows, of whole blocks of `block_type`, in `range` of `bytes`.
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

    /// The same matrix, rounded to a 16-bit type unless it is stored in that already; for f32 it stays as it is.
    pub fn rounded_to(&self, dtype: StorageDtype) -> Self {
        let values = match (dtype, self.storage_dtype()) {
            (StorageDtype::BF16, StorageDtype::F32 | StorageDtype::F16) => {
                Values::Bf16(Arc::new(round_to_bf16(&self.values())))
            }
            (StorageDtype::F16, StorageDtype::F32 | StorageDtype::BF16) => {
                Values::F16(Arc::new(round_to_f16(&self.values())))
            }
            _ => return self.clone(),
        };
        Self { values, order: None, ..*self }
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

    /// The type that its values are stored in; those of quantised blocks are f32, and those in the 4 bits of bitsandbytes were
    /// rounded to a type.
    pub fn storage_dtype(&self) -> StorageDtype {
        match &self.values {
            Values::File(_, _, dtype) => *dtype,
            Values::F32(_) | Values::Blocks(..) => StorageDtype::F32,
            Values::FourBit(matrix) => matrix.dtype(),
            Values::Bf16(_) => StorageDtype::BF16,
            Values::F16(_) => StorageDtype::F16,
        }
    }

    /// The type of its blocks, if it is quantised.
    pub fn block_type(&self) -> Option<BlockType> {
        if let Values::Blocks(_, _, block_type) = self.values { Some(block_type) } else { None }
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
    fn plain_f32(&self) -> Option<&[f32]> {
        match self.slice(0..self.rows) {
            Some(Slice::F32(values)) if self.order.is_none() => Some(values),
            _ => None,
        }
    }

    /// Some rows as they are stored, unless they are quantised.
    fn slice(&self, rows: Range<usize>) -> Option<Slice<'_>> {
        let (start, end) = (rows.start * self.columns, rows.end * self.columns);
        Some(match &self.values {
            Values::F32(values) => Slice::F32(&values[start..end]),
            Values::Bf16(values) => Slice::BF16(&values[start..end]),
            Values::F16(values) => Slice::F16(&values[start..end]),
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

    /// Some rows as f32, `[rows, columns of the matrix]`.
    fn widen_rows(&self, rows: Range<usize>, wide: &mut [f32]) {
        if self.order.is_none() && !rows.is_empty() {
            return self.widen_stored(rows, 0..self.columns, wide);
        }
        for (row, wide) in rows.zip(wide.chunks_exact_mut(self.columns)) {
            self.widen_part(row, 0..self.columns, wide);
        }
    }

    /// Some columns of a row as f32; of a quantised row, those of whole blocks.
    fn widen_part(&self, row: usize, columns: Range<usize>, wide: &mut [f32]) {
        let stored = self.order.as_ref().map_or(row, |order| order[row] as usize);
        self.widen_stored(stored..stored + 1, columns, wide);
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

    /// `y[:, columns] = x Wᵀ`: `x` is `[tokens, columns of W]`, and `y` is `[tokens, width]`.
    pub fn forward(&self, x: &[f32], y: &mut [f32], width: usize, columns: Range<usize>) {
        assert_eq!(columns.len(), self.rows, "columns of the output");
        let y = MatrixMut::new(&mut y[columns.start..], x.len() / self.columns, self.rows, width);
        product(&[self], &Tokens::new(&[self], x, TokenPrecision::Exact), y);
    }

    /// How it is multiplied with these tokens.
    fn form(&self, tokens: &Tokens) -> ProductForm {
        let count = tokens.x.len() / self.columns;
        if tokens.eight_bit.is_some() && self.integer_type().is_some() {
            return ProductForm::Integers;
        }
        match count {
            0..=FEW => ProductForm::Few,
            _ if token_lanes::TOKENS.contains(&count) => ProductForm::Lanes,
            _ if self.plain_f32().is_some() => ProductForm::Whole,
            _ => ProductForm::Widened,
        }
    }

    /// `y = x Wᵀ` for some rows of a matrix: `y` is `[tokens, rows]`. `room` is used again for the next tile.
    fn forward_tile(&self, tokens: &Tokens, rows: Range<usize>, y: MatrixMut, room: &mut [Vec<f32>; 2]) {
        let (x, count) = (tokens.x, tokens.x.len() / self.columns);
        let [wide, products] = room;
        products.resize(rows.len() * count, 0.0);
        match (self.form(tokens), &tokens.eight_bit, &tokens.lanes) {
            (ProductForm::Integers, Some(tokens), _) => {
                self.integer_products(rows, tokens, products);
                y.copy_from_transposed(products);
            }
            (ProductForm::Lanes, _, Some(lanes)) => {
                LaneProducts { lanes, source: self, rows, y: products, wide }.run();
                y.copy_from(products);
            }
            (ProductForm::Few, ..) => {
                wide.resize(self.columns, 0.0);
                self.few_products(rows, x, wide, products);
                y.copy_from_transposed(products);
            }
            _ => {
                wide.resize(rows.len() * self.columns, 0.0);
                self.widen_rows(rows.clone(), wide);
                let x = MatrixRef::new(x, count, self.columns, self.columns);
                let w = MatrixRef::new(wide, rows.len(), self.columns, self.columns);
                gemm(y, Destination::Overwrite, x, w.transposed(), 1.0);
            }
        }
    }

    /// `y`, `[rows, tokens]`, of few tokens; `row` is room for a row.
    fn few_products(&self, rows: Range<usize>, x: &[f32], row: &mut [f32], y: &mut [f32]) {
        let columns = self.columns;
        let stored = if self.order.is_none() { self.slice(rows.clone()) } else { None };
        match stored {
            Some(Slice::F32(rows)) => simd::dispatch(RowProducts { rows, columns, widen: |value: f32| value, x, y }),
            Some(Slice::BF16(rows)) => simd::dispatch(RowProducts { rows, columns, widen: bf16_as_f32, x, y }),
            Some(Slice::F16(_)) | None => {
                let write = |r: usize, row: &mut [f32]| self.widen_part(rows.start + r, 0..columns, row);
                simd::dispatch(WrittenRowProducts { write, x, row, y });
            }
        }
    }

    /// The type of its blocks, if they are multiplied with tokens of 8 bits.
    fn integer_type(&self) -> Option<BlockType> {
        self.block_type().filter(|block_type| block_type.has_integer_products())
    }

    /// `y`, `[rows, tokens]`, of quantised rows and tokens of 8 bits.
    fn integer_products(&self, rows: Range<usize>, tokens: &EightBitTokens, y: &mut [f32]) {
        let Values::Blocks(bytes, range, block_type) = &self.values else { return };
        let row_bytes = self.columns / block_type.block_values() * block_type.block_bytes();
        let stored =
            |rows: Range<usize>| &bytes[range.start + rows.start * row_bytes..range.start + rows.end * row_bytes];
        let Some(order) = &self.order else { return block_type.integer_products(stored(rows), tokens, y) };
        for (&row, y) in order[rows].iter().zip(y.chunks_exact_mut(tokens.len())) {
            block_type.integer_products(stored(row as usize..row as usize + 1), tokens, y);
        }
    }

    /// `dx = dy W`, or added to `dx`: `dy` is `[tokens, rows]` and `dx` `[tokens, columns]`.
    pub fn backward(&self, dy: MatrixRef, dx: &mut [f32], into: Destination) {
        let dx = MatrixMut::new(dx, dx.len() / self.columns, self.columns, self.columns);
        if let Some(w) = self.plain_f32() {
            let w = MatrixRef::new(w, self.rows, self.columns, self.columns);
            return par_gemm(dx, into, dy, w, 1.0);
        }
        // Tiles of columns are of whole blocks; the order in which their rows are added up depends on nothing else.
        let (width, rows) = match self.block_type() {
            Some(block_type) => (TILE.next_multiple_of(block_type.block_values()), BLOCK_ROWS),
            None => (TILE, TILE_ROWS),
        };
        dx.column_tiles(width).into_par_iter().for_each_init(Vec::new, |wide, (columns, mut dx)| {
            for start in (0..self.rows).step_by(rows) {
                let rows = start..(start + rows).min(self.rows);
                self.widen_columns(rows.clone(), &columns, wide);
                let w = MatrixRef::new(wide, rows.len(), columns.len(), columns.len());
                let into = if start == 0 { into } else { Destination::Add };
                gemm(dx.reborrowed(), into, dy.columns(rows), w, 1.0);
            }
        });
    }

    /// Some columns of some rows, widened into `wide`, `[rows, columns]`.
    fn widen_columns(&self, rows: Range<usize>, columns: &Range<usize>, wide: &mut Vec<f32>) {
        wide.resize(rows.len() * columns.len(), 0.0);
        for (row, wide) in rows.zip(wide.chunks_exact_mut(columns.len())) {
            self.widen_part(row, columns.clone(), wide);
        }
    }
}

/// How a matrix is multiplied with some tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProductForm {
    /// Quantised rows with tokens of 8 bits.
    Integers,
    /// Row by row with few tokens.
    Few,
    /// Row by row with some tens of tokens.
    Lanes,
    /// Tiles of rows, widened, with many tokens.
    Widened,
    /// All rows in f32 with many tokens.
    Whole,
}

impl ProductForm {
    /// Rows that a thread takes at a time.
    fn tile(self) -> usize {
        match self {
            Self::Integers | Self::Few => FEW_ROWS,
            Self::Lanes => token_lanes::TILE,
            Self::Widened | Self::Whole => TILE,
        }
    }
}

/// The tokens that matrices are multiplied with.
struct Tokens<'a> {
    /// `[tokens, columns]`.
    x: &'a [f32],
    /// The same, rounded for quantised matrices that are multiplied so.
    eight_bit: Option<EightBitTokens>,
    /// The same for the others, if they are some tens.
    lanes: Option<TokenLanes>,
}

impl<'a> Tokens<'a> {
    fn new(weights: &[&MmapMatrix], x: &'a [f32], precision: TokenPrecision) -> Self {
        let columns = weights[0].columns;
        let is_rounded = precision == TokenPrecision::EightBit && weights.iter().any(|w| w.integer_type().is_some());
        let eight_bit = is_rounded.then(|| EightBitTokens::new(x, columns));
        let mut tokens = Self { x, eight_bit, lanes: None };
        let has_lanes = weights.iter().any(|weight| weight.form(&tokens) == ProductForm::Lanes);
        tokens.lanes = has_lanes.then(|| TokenLanes::new(x, columns));
        tokens
    }
}

/// `y = x Wᵀ` of matrices that read the same input: `x` is `[tokens, columns]`, and `y`, `[tokens, sum of rows]`, holds
/// their outputs side by side. Quantised matrices are multiplied with tokens of this precision.
///
/// # Panics
/// If there is no matrix, or `y` has not one row for each of `x`.
pub fn forward_side_by_side(weights: &[&MmapMatrix], x: &[f32], y: &mut [f32], precision: TokenPrecision) {
    let (width, columns): (usize, _) = (weights.iter().map(|weight| weight.rows).sum(), weights[0].columns);
    // Callers hand over outputs that are not set.
    assert_eq!(x.len() * width, y.len() * columns, "values of inputs and outputs");
    product(weights, &Tokens::new(weights, x, precision), MatrixMut::new(y, x.len() / columns, width, width));
}

fn product(weights: &[&MmapMatrix], tokens: &Tokens, y: MatrixMut) {
    let (x, columns) = (tokens.x, weights[0].columns);
    let count = x.len() / columns;
    let (mut rest, mut tiles, mut work) = (y, Vec::new(), 0);
    for &weight in weights {
        let (own, others) = rest.split_at_column(weight.rows);
        rest = others;
        let form = weight.form(tokens);
        if let (ProductForm::Whole, Some(w)) = (form, weight.plain_f32()) {
            let x = MatrixRef::new(x, count, columns, columns);
            let w = MatrixRef::new(w, weight.rows, columns, columns);
            par_gemm(own, Destination::Overwrite, x, w.transposed(), 1.0);
        } else {
            work += weight.rows * x.len();
            tiles.extend(own.column_tiles(form.tile()).into_iter().map(|(rows, y)| (weight, rows, y)));
        }
    }
    if work < PARALLEL_WORK {
        let mut room = Default::default();
        return tiles.into_iter().for_each(|(weight, rows, y)| weight.forward_tile(tokens, rows, y, &mut room));
    }
    // One parallel region for all: a decoded token has hundreds of products, and starting threads for each would show.
    tiles
        .into_par_iter()
        .for_each_init(Default::default, |room, (weight, rows, y)| weight.forward_tile(tokens, rows, y, room));
}

impl RowSource for MmapMatrix {
    fn rows<'a>(&'a self, rows: Range<usize>, columns: Range<usize>, wide: &'a mut Vec<f32>) -> (&'a [f32], usize) {
        if let (None, Some(Slice::F32(values))) = (&self.order, self.slice(rows.clone())) {
            return (&values[columns.start..], self.columns);
        }
        self.widen_columns(rows, &columns, wide);
        (wide, columns.len())
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
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// Small whole numbers: their sums are exact in any order.
    fn numbers(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    fn weight(dtype: StorageDtype, rows: usize, columns: usize) -> MmapMatrix {
        MmapMatrix::from_values(numbers(rows * columns, 7), rows, columns).unwrap().rounded_to(dtype)
    }

    /// The same matrix with its rows in reverse.
    fn reversed(matrix: &MmapMatrix) -> MmapMatrix {
        matrix.clone().with_row_order((0..matrix.rows as u32).rev().collect())
    }

    /// Blocks of Q8_0 with whole numbers for values and a scale of one.
    fn blocks(rows: usize, columns: usize) -> MmapMatrix {
        let values: Vec<u8> = numbers(rows * columns, 7).into_iter().map(|value| value as i8 as u8).collect();
        let bytes = values.chunks_exact(32).flat_map(|block| [&f16::ONE.to_le_bytes()[..], block].concat());
        // An odd address: blocks are not aligned.
        let bytes: Vec<u8> = [9].into_iter().chain(bytes).collect();
        let range = 1..bytes.len();
        MmapMatrix::of_blocks(FileBytes::Owned(bytes.into()), range, BlockType::Q8_0, rows, columns).unwrap()
    }

    /// Matrices of several types side by side, with the tokens of the quantised ones rounded, and rows in another order.
    #[test]
    fn rounded_tokens_give_nearly_the_products_of_the_values_whatever_is_beside_them() {
        let columns = 288;
        let matrices = [
            blocks(70, columns),
            weight(StorageDtype::BF16, 33, columns),
            reversed(&blocks(40, columns)),
            weight(StorageDtype::F32, 31, columns),
        ];
        let all: Vec<&MmapMatrix> = matrices.iter().collect();
        let width: usize = matrices.iter().map(MmapMatrix::rows).sum();
        for tokens in [1, 5, 19] {
            // No whole numbers: their rounding would be exact.
            let x: Vec<f32> = (0..tokens * columns).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut products = [TokenPrecision::Exact, TokenPrecision::EightBit].map(|precision| {
                let mut y = vec![9.0; tokens * width];
                forward_side_by_side(&all, &x, &mut y, precision);
                y
            });
            let [exact, rounded] = &mut products;
            let mut moved = 0.0f32;
            for (i, (exact, rounded)) in exact.iter().zip(rounded).enumerate() {
                let is_quantised = i % width < 70 || (103..143).contains(&(i % width));
                let difference = (exact - *rounded).abs();
                assert!(difference <= if is_quantised { 1.0 } else { 0.0 }, "{i}: {exact} {rounded}");
                moved = moved.max(difference);
            }
            assert!(moved > 1e-3);
        }
    }

    #[test]
    fn quantised_and_reordered_matrices_give_the_products_of_their_values() {
        for (tokens, rows, columns) in [(3, 70, 96), (19, 70, 96), (5, 1030, 1056), (19, 1030, 1056)] {
            let (x, dy) = (numbers(tokens * columns, 5), numbers(tokens * rows, 3));
            let plain = [StorageDtype::F32, StorageDtype::BF16, StorageDtype::F16];
            let plain = plain.map(|dtype| reversed(&weight(dtype, rows, columns)));
            let quantised = [blocks(rows, columns), reversed(&blocks(rows, columns))];
            for matrix in plain.into_iter().chain(quantised) {
                let values = MmapMatrix::from_values(matrix.values().into_owned(), rows, columns).unwrap();
                let product = |matrix: &MmapMatrix| {
                    let (mut y, mut dx) = (vec![9.0; tokens * rows], vec![1.0; tokens * columns]);
                    matrix.forward(&x, &mut y, rows, 0..rows);
                    matrix.backward(MatrixRef::new(&dy, tokens, rows, rows), &mut dx, Destination::Add);
                    (y, dx)
                };
                assert!(product(&matrix) == product(&values), "{tokens} {rows} {columns}");
            }
        }
    }

    #[test]
    fn rows_are_found_by_their_order() {
        let (plain, quantised) = (weight(StorageDtype::F32, 4, 64), blocks(4, 64));
        assert_eq!(plain.values(), quantised.values());
        for dtype in [StorageDtype::F32, StorageDtype::BF16, StorageDtype::F16] {
            let matrix = reversed(&plain.rounded_to(dtype));
            assert_eq!(matrix.values(), reversed(&quantised).values());
            let mut row = vec![0.0; 64];
            matrix.copy_row(3, &mut row);
            assert_eq!(row, plain.values()[..64]);
        }
    }

    /// Widths that no tile divides, few and many tokens, and products that one thread makes and that all make.
    const SHAPES: [(usize, usize, usize); 6] =
        [(3, 70, 33), (19, 70, 33), (5, 1030, 1031), (19, 1030, 1031), (100, 70, 33), (100, 130, 1031)];

    #[test]
    fn tiles_of_any_width_and_precision_give_the_product() {
        for (tokens, rows, columns) in SHAPES {
            let (x, width) = (numbers(tokens * columns, 5), rows + 3);
            for dtype in [StorageDtype::F32, StorageDtype::BF16, StorageDtype::F16] {
                let mapped = weight(dtype, rows, columns);
                let mut y = vec![9.0; tokens * width];
                mapped.forward(&x, &mut y, width, 2..2 + rows);
                let w = mapped.values();
                for (t, y) in y.chunks_exact(width).enumerate() {
                    let x = &x[t * columns..][..columns];
                    let expected = w.chunks_exact(columns).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>());
                    assert!(y[2..2 + rows].iter().copied().eq(expected), "{dtype:?} {tokens} {rows} {columns}");
                    assert_eq!((y[0], y[1], y[width - 1]), (9.0, 9.0, 9.0));
                }
            }
        }
    }

    #[test]
    fn its_backward_is_the_transposed_product_added_or_written() {
        for (tokens, rows, columns) in SHAPES {
            let dy = numbers(tokens * rows, 3);
            for dtype in [StorageDtype::F32, StorageDtype::BF16, StorageDtype::F16] {
                let mapped = weight(dtype, rows, columns);
                let (mut written, mut added) = (vec![9.0; tokens * columns], vec![1.0; tokens * columns]);
                mapped.backward(MatrixRef::new(&dy, tokens, rows, rows), &mut written, Destination::Overwrite);
                mapped.backward(MatrixRef::new(&dy, tokens, rows, rows), &mut added, Destination::Add);
                let w = mapped.values();
                for (t, dx) in written.chunks_exact(columns).enumerate() {
                    for c in [0, 1, 31, columns / 2, columns - 1] {
                        let expected: f32 = (0..rows).map(|r| dy[t * rows + r] * w[r * columns + c]).sum();
                        assert_eq!(dx[c], expected, "{dtype:?} {tokens} {rows} {columns}");
                        assert_eq!(added[t * columns + c], expected + 1.0);
                    }
                }
            }
        }
    }
}
