//! Matrices rounded to a 16-bit type, all of a base in one piece of memory: on all threads, each value once and into its
//! place.

use crate::error::Result;
use crate::weights::half_precision::{round_to_bf16, round_to_f16};
use crate::weights::mmap_matrix::{MmapMatrix, Slice};
use crate::weights::storage_dtype::StorageDtype;
use lorakit_format::mmap::FileBytes;
use pulp::bytemuck::cast_slice_mut;
use rayon::prelude::*;
use std::ops::Range;

/// Values that one task of the thread pool rounds.
const CHUNK: usize = 1 << 16;

/// Matrices begin at a line of the cache, in bytes.
const LINE: usize = 64;

impl MmapMatrix {
    /// Whether [`MmapMatrix::rounded_to`] makes another matrix of it.
    pub(super) fn is_rounded_by(&self, dtype: StorageDtype) -> bool {
        dtype != StorageDtype::F32 && self.storage_dtype() != dtype
    }

    /// The same matrix, rounded to a 16-bit type unless it is stored in that already; for f32 it stays as it is.
    ///
    /// # Errors
    /// If there is not as much memory.
    pub fn rounded_to(&self, dtype: StorageDtype) -> Result<Self> {
        let rounded = if self.is_rounded_by(dtype) { rounded_matrices(&[self], dtype)?.pop() } else { None };
        Ok(rounded.unwrap_or_else(|| self.clone()))
    }

    /// Writes the bits of some rows rounded to `dtype`, which has 16; `wide` is room for their values.
    fn round_rows(&self, rows: Range<usize>, dtype: StorageDtype, wide: &mut Vec<f32>, bits: &mut [u16]) {
        let values = match self.ordered_slice(rows.clone()) {
            Some(Slice::F32(values)) => values,
            _ => {
                wide.resize(bits.len(), 0.0);
                self.widen_rows(rows, wide);
                wide
            }
        };
        match dtype {
            StorageDtype::F16 => round_to_f16(values, bits),
            StorageDtype::BF16 | StorageDtype::F32 => round_to_bf16(values, bits),
        }
    }
}

/// Matrices of which each [is rounded](MmapMatrix::is_rounded_by), in their order.
///
/// # Errors
/// If there is not as much memory.
pub(super) fn rounded_matrices(matrices: &[&MmapMatrix], dtype: StorageDtype) -> Result<Vec<MmapMatrix>> {
    let length = |matrix: &MmapMatrix| matrix.rows() * matrix.columns() * dtype.size();
    let size = matrices.iter().map(|matrix| length(matrix).next_multiple_of(LINE)).sum();
    let bytes = FileBytes::filled(size, |bytes| {
        let (mut rest, mut tasks) = (bytes, Vec::new());
        for &matrix in matrices {
            let (own, others) = rest.split_at_mut(length(matrix).next_multiple_of(LINE));
            rest = others;
            let columns = matrix.columns().max(1);
            let rows = (CHUNK / columns).max(1);
            let parts = own[..length(matrix)].chunks_mut(rows * columns * dtype.size());
            tasks.extend(parts.enumerate().map(|(part, bytes)| (matrix, part * rows, bytes)));
        }
        tasks.into_par_iter().for_each_init(Vec::new, |wide, (matrix, first, bytes)| {
            let bits: &mut [u16] = cast_slice_mut(bytes);
            matrix.round_rows(first..first + bits.len() / matrix.columns(), dtype, wide, bits);
        });
    })?;
    let starts = matrices.iter().scan(0, |end, matrix| {
        let start = *end;
        *end += length(matrix).next_multiple_of(LINE);
        Some(start)
    });
    let rounded = |(matrix, start): (&&MmapMatrix, usize)| {
        MmapMatrix::new(bytes.clone(), start..start + length(matrix), dtype, matrix.rows(), matrix.columns())
    };
    matrices.iter().zip(starts).map(rounded).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::weights::mmap_matrix::tests::{blocks, reversed};
    use half::{bf16, f16};

    /// Values that both types round.
    fn thirds(rows: usize, columns: usize) -> MmapMatrix {
        let values = (0..rows * columns).map(|i| i as f32 / 300.0 - 350.0).collect();
        MmapMatrix::from_values(values, rows, columns).unwrap()
    }

    /// Of several tasks and of less than one, in another order, quantized, and narrow already.
    #[test]
    fn matrices_side_by_side_are_rounded_value_by_value() {
        for dtype in [StorageDtype::BF16, StorageDtype::F16] {
            let other = if dtype == StorageDtype::F16 { StorageDtype::BF16 } else { StorageDtype::F16 };
            let narrow = thirds(5, 33).rounded_to(other).unwrap();
            let matrices =
                [thirds(3, 7), thirds(300, 700), reversed(&thirds(2, 9)), blocks(2, 64), narrow, thirds(0, 4)];
            let rounded = rounded_matrices(&matrices.each_ref(), dtype).unwrap();
            assert_eq!(rounded.len(), matrices.len());
            for (rounded, matrix) in rounded.iter().zip(&matrices) {
                let round = |&value: &f32| match dtype {
                    StorageDtype::F16 => f16::from_f32(value).to_f32(),
                    _ => bf16::from_f32(value).to_f32(),
                };
                let expected: Vec<f32> = matrix.values().iter().map(round).collect();
                assert_eq!((rounded.storage_dtype(), rounded.rows()), (dtype, matrix.rows()));
                assert_eq!(rounded.values(), expected);
            }
        }
    }

    #[test]
    fn what_is_as_narrow_already_stays_where_it_is() {
        let narrow = thirds(4, 8).rounded_to(StorageDtype::BF16).unwrap();
        let address = |matrix: &MmapMatrix| match matrix.ordered_slice(0..4) {
            Some(Slice::BF16(values)) => values.as_ptr(),
            _ => std::ptr::null(),
        };
        assert_eq!(address(&narrow.rounded_to(StorageDtype::BF16).unwrap()), address(&narrow));
        assert_eq!(address(&narrow.rounded_to(StorageDtype::F32).unwrap()), address(&narrow));
    }
}
