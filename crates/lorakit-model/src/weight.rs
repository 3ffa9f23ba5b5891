//! Weights: a tensor where they train or live on a device, else the bytes of a mapped file.

use crate::checkpoint::Bytes;
use anyhow::{Result, ensure};
use candle_core::{DType, Device, Tensor};
use half::{bf16, f16, slice::HalfFloatSliceExt};
use lorakit_lora::kernels::gemm::{Destination, MatrixMut, MatrixRef, gemm, par_gemm};
use rayon::prelude::*;
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

/// What the values of a weight's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// 32 bits wide.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// 16 bits, the upper half of an f32.
    BF16,
}

impl Element {
    /// That of a safetensors file, where it is one of these.
    pub fn of(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::F16 => Some(Self::F16),
            safetensors::Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The largest error of rounding a value to it, relative to the value.
    pub fn unit_roundoff(self) -> f64 {
        match self {
            Self::F32 => 2f64.powi(-24),
            Self::F16 => 2f64.powi(-11),
            Self::BF16 => 2f64.powi(-8),
        }
    }

    /// Size in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The same in candle's words.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
        }
    }
}

/// A frozen matrix `[rows, columns]`, row-major, whose bytes stay where they are.
#[derive(Clone)]
pub struct Mapped {
    values: Values,
    rows: usize,
    columns: usize,
}

#[derive(Clone)]
enum Values {
    /// Aligned bytes of a file.
    Bytes(Bytes, Range<usize>, Element),
    /// Values that could not be read where they stood.
    Floats(Arc<[f32]>),
    /// Values that were narrowed on the user's wish.
    Halves(Arc<[bf16]>),
    /// The same in IEEE's form.
    Ieee(Arc<[f16]>),
}

/// Some values of a weight as they stand in memory.
enum Slice<'a> {
    F32(&'a [f32]),
    BF16(&'a [bf16]),
    F16(&'a [f16]),
}

/// A weight of a base.
#[derive(Clone)]
pub enum Weight {
    /// On a device, or trained.
    Tensor(Tensor),
    /// Frozen, on the CPU.
    Mapped(Mapped),
}

impl Weight {
    /// The matrix as a tensor, beside `x` where it is no tensor yet.
    pub(crate) fn tensor(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Tensor(weight) => Ok(weight.clone()),
            Self::Mapped(weight) => weight.to_tensor(x.dtype(), x.device()),
        }
    }
}

/// Rows (forward) or columns (backward) of a weight of 16 bits that are widened at a time, so that a tile stays in its
/// core's cache while all tokens pass over it.
const TILE: usize = 64;

/// Reads aligned bytes as values of `T`.
///
/// # Safety
/// Every bit pattern must be a `T`.
unsafe fn cast<T>(bytes: &[u8]) -> &[T] {
    debug_assert_eq!(bytes.as_ptr().align_offset(align_of::<T>()), 0);
    // SAFETY: the caller vouches for the patterns, `Mapped::new` for the alignment, and the length is rounded down.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>()) }
}

impl Mapped {
    /// The `rows * columns` values of kind `element` within `range` of `bytes`.
    pub fn new(bytes: Bytes, range: Range<usize>, element: Element, rows: usize, columns: usize) -> Result<Self> {
        ensure!(
            range.end <= bytes.len() && range.len() == rows * columns * element.size(),
            "{rows} x {columns} values of {element:?} do not fill the bytes {range:?}"
        );
        let body = &bytes[range.clone()];
        let values = if body.as_ptr().align_offset(element.size()) == 0 {
            Values::Bytes(bytes, range, element)
        } else {
            Values::Floats(widen_unaligned(body, element).into())
        };
        Ok(Self { values, rows, columns })
    }

    /// A matrix of the caller's values.
    pub fn from_values(values: Vec<f32>, rows: usize, columns: usize) -> Result<Self> {
        ensure!(values.len() == rows * columns, "{} values do not fill {rows} x {columns}", values.len());
        Ok(Self { values: Values::Floats(values.into()), rows, columns })
    }

    /// The same values, rounded to 16 bits where `element` is narrower than they are.
    pub fn narrowed(&self, element: Element) -> Self {
        let values = match (element, self.slice(0..self.rows)) {
            (Element::BF16, Slice::F32(v)) => Values::Halves(v.iter().map(|&x| bf16::from_f32(x)).collect()),
            (Element::F16, Slice::F32(v)) => Values::Ieee(v.iter().map(|&x| f16::from_f32(x)).collect()),
            (Element::F16, Slice::BF16(v)) => Values::Ieee(v.iter().map(|&x| f16::from_f32(x.to_f32())).collect()),
            (Element::BF16, Slice::F16(v)) => Values::Halves(v.iter().map(|&x| bf16::from_f32(x.to_f32())).collect()),
            _ => self.values.clone(),
        };
        Self { values, ..*self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values as f32: borrowed where they stand so, else widened.
    pub fn values(&self) -> Cow<'_, [f32]> {
        match self.slice(0..self.rows) {
            Slice::F32(values) => values.into(),
            slice => {
                let mut wide = vec![0.0; self.rows * self.columns];
                slice.widen(&mut wide);
                wide.into()
            }
        }
    }

    /// What kind its values are of.
    pub fn element(&self) -> Element {
        match self.slice(0..0) {
            Slice::F32(_) => Element::F32,
            Slice::BF16(_) => Element::BF16,
            Slice::F16(_) => Element::F16,
        }
    }

    /// A row as f32, written to `row`.
    pub fn copy_row(&self, index: usize, row: &mut [f32]) {
        self.slice(index..index + 1).widen(row);
    }

    /// The values as a tensor.
    pub fn to_tensor(&self, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Tensor::from_slice(&self.values(), (self.rows, self.columns), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)
    }

    fn slice(&self, rows: Range<usize>) -> Slice<'_> {
        let (start, end) = (rows.start * self.columns, rows.end * self.columns);
        match &self.values {
            Values::Floats(values) => Slice::F32(&values[start..end]),
            Values::Halves(values) => Slice::BF16(&values[start..end]),
            Values::Ieee(values) => Slice::F16(&values[start..end]),
            Values::Bytes(bytes, range, element) => {
                let size = element.size();
                let body = &bytes[range.start + start * size..range.start + end * size];
                // SAFETY: `new` checked the alignment, and every pattern of bits is a value of each of these.
                unsafe {
                    match element {
                        Element::F32 => Slice::F32(cast(body)),
                        Element::F16 => Slice::F16(cast(body)),
                        Element::BF16 => Slice::BF16(cast(body)),
                    }
                }
            }
        }
    }

    /// `y[t, columns] = x Wᵀ`, where `x` is `[tokens, W's columns]` and `columns` are those of `y`, `width` wide.
    pub fn forward(&self, x: &[f32], y: &mut [f32], width: usize, columns: Range<usize>) {
        let tokens = x.len() / self.columns;
        assert_eq!(columns.len(), self.rows, "columns of the output");
        let x = MatrixRef::new(x, tokens, self.columns, self.columns);
        let y = MatrixMut::new(&mut y[columns.start..], tokens, self.rows, width);
        if let Slice::F32(w) = self.slice(0..self.rows) {
            let w = MatrixRef::new(w, self.rows, self.columns, self.columns);
            return par_gemm(y, Destination::Overwrite, x, w.transposed(), 1.0);
        }
        y.column_tiles(TILE).into_par_iter().for_each_init(Vec::new, |wide, (rows, y)| {
            let count = rows.len();
            wide.resize(count * self.columns, 0.0);
            self.slice(rows).widen(wide);
            let w = MatrixRef::new(wide, count, self.columns, self.columns);
            gemm(y, Destination::Overwrite, x, w.transposed(), 1.0);
        });
    }

    /// `dx = dy W`, or added to `dx`, where `dy`'s `columns`, of `width`, are those that [`Mapped::forward`] filled.
    pub fn backward(&self, dy: &[f32], width: usize, columns: Range<usize>, dx: &mut [f32], into: Destination) {
        let tokens = dx.len() / self.columns;
        let dy = MatrixRef::new(&dy[columns.start..], tokens, self.rows, width);
        let dx = MatrixMut::new(dx, tokens, self.columns, self.columns);
        if let Slice::F32(w) = self.slice(0..self.rows) {
            let w = MatrixRef::new(w, self.rows, self.columns, self.columns);
            return par_gemm(dx, into, dy, w, 1.0);
        }
        dx.column_tiles(TILE).into_par_iter().for_each_init(Vec::new, |wide, (tile, dx)| {
            self.widen_columns(&tile, wide);
            gemm(dx, into, dy, MatrixRef::new(wide, self.rows, tile.len(), tile.len()), 1.0);
        });
    }

    /// Some columns of all rows, widened into `wide`, `[rows, columns of the tile]`.
    fn widen_columns(&self, tile: &Range<usize>, wide: &mut Vec<f32>) {
        wide.resize(self.rows * tile.len(), 0.0);
        for (row, wide) in wide.chunks_exact_mut(tile.len()).enumerate() {
            self.slice(row..row + 1).part(tile.clone()).widen(wide);
        }
    }
}

fn widen_unaligned(bytes: &[u8], element: Element) -> Vec<f32> {
    let pairs = || bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    match element {
        Element::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Element::F16 => pairs().map(|b| f16::from_bits(b).to_f32()).collect(),
        Element::BF16 => pairs().map(|b| bf16::from_bits(b).to_f32()).collect(),
    }
}

impl<'a> Slice<'a> {
    fn part(self, range: Range<usize>) -> Slice<'a> {
        match self {
            Self::F32(v) => Self::F32(&v[range]),
            Self::BF16(v) => Self::BF16(&v[range]),
            Self::F16(v) => Self::F16(&v[range]),
        }
    }

    fn widen(&self, wide: &mut [f32]) {
        match self {
            Self::F32(values) => wide.copy_from_slice(values),
            Self::BF16(values) => {
                wide.iter_mut().zip(*values).for_each(|(w, v)| *w = f32::from_bits(u32::from(v.to_bits()) << 16))
            }
            Self::F16(values) => values.convert_to_f32_slice(wide),
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

    fn weight(element: Element, rows: usize, columns: usize) -> Mapped {
        Mapped::from_values(numbers(rows * columns, 7), rows, columns).unwrap().narrowed(element)
    }

    /// Widths that no tile divides, few and many tokens, and products that one thread makes and that all make.
    const SHAPES: [(usize, usize, usize); 4] = [(3, 70, 33), (19, 70, 33), (5, 1030, 1031), (19, 1030, 1031)];

    #[test]
    fn tiles_of_any_width_and_precision_give_the_product() {
        for (tokens, rows, columns) in SHAPES {
            let (x, width) = (numbers(tokens * columns, 5), rows + 3);
            for element in [Element::F32, Element::BF16, Element::F16] {
                let mapped = weight(element, rows, columns);
                let mut y = vec![9.0; tokens * width];
                mapped.forward(&x, &mut y, width, 2..2 + rows);
                let w = mapped.values();
                for (t, y) in y.chunks_exact(width).enumerate() {
                    let x = &x[t * columns..][..columns];
                    let expected = w.chunks_exact(columns).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>());
                    assert!(y[2..2 + rows].iter().copied().eq(expected), "{element:?} {tokens} {rows} {columns}");
                    assert_eq!((y[0], y[1], y[width - 1]), (9.0, 9.0, 9.0));
                }
            }
        }
    }

    #[test]
    fn its_backward_is_the_transposed_product_added_or_written() {
        for (tokens, rows, columns) in SHAPES {
            let dy = numbers(tokens * rows, 3);
            for element in [Element::F32, Element::BF16, Element::F16] {
                let mapped = weight(element, rows, columns);
                let (mut written, mut added) = (vec![9.0; tokens * columns], vec![1.0; tokens * columns]);
                mapped.backward(&dy, rows, 0..rows, &mut written, Destination::Overwrite);
                mapped.backward(&dy, rows, 0..rows, &mut added, Destination::Add);
                let w = mapped.values();
                for (t, dx) in written.chunks_exact(columns).enumerate() {
                    for c in [0, 1, 31, columns / 2, columns - 1] {
                        let expected: f32 = (0..rows).map(|r| dy[t * rows + r] * w[r * columns + c]).sum();
                        assert_eq!(dx[c], expected, "{element:?} {tokens} {rows} {columns}");
                        assert_eq!(added[t * columns + c], expected + 1.0);
                    }
                }
            }
        }
    }
}
