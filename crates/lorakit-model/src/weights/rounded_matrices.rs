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
use std::sync::atomic::{AtomicBool, Ordering};

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
        Ok(rounded.map_or_else(|| self.clone(), |rounded| rounded.matrix))
    }

    /// Writes the bits of some rows rounded to `dtype`, which has 16; `wide` is scratch for their values. Returns whether a
    /// finite value became infinite.
    fn round_rows(&self, rows: Range<usize>, dtype: StorageDtype, wide: &mut Vec<f32>, bits: &mut [u16]) -> bool {
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
        overflow(values, dtype)
    }
}

/// Whether a finite value is infinite when it is rounded to `dtype`.
pub(super) fn overflow(values: &[f32], dtype: StorageDtype) -> bool {
    // Halfway from the largest finite value to the next power of two.
    let first = match dtype {
        StorageDtype::F16 => 65520.0,
        StorageDtype::BF16 => f32::from_bits(0x7f7f_8000),
        StorageDtype::F32 => return false,
    };
    // No early end: so the compiler turns it into vectors.
    values.iter().fold(false, |found, value| found | (value.abs() >= first && value.is_finite()))
}

/// A matrix rounded to 16 bits.
pub(super) struct RoundedMatrix {
    pub(super) matrix: MmapMatrix,
    /// Whether the type is too narrow: a finite value became infinite.
    pub(super) overflows: bool,
}

/// Matrices of which each [is rounded](MmapMatrix::is_rounded_by), in their order.
///
/// # Errors
/// If there is not as much memory.
pub(super) fn rounded_matrices(matrices: &[&MmapMatrix], dtype: StorageDtype) -> Result<Vec<RoundedMatrix>> {
    let length = |matrix: &MmapMatrix| matrix.rows() * matrix.columns() * dtype.size();
    let size = matrices.iter().map(|matrix| length(matrix).next_multiple_of(LINE)).sum();
    let overflows: Vec<AtomicBool> = matrices.iter().map(|_| AtomicBool::new(false)).collect();
    let bytes = FileBytes::filled(size, |bytes| {
        let (mut rest, mut tasks) = (bytes, Vec::new());
        for (&matrix, overflows) in matrices.iter().zip(&overflows) {
            let (own, others) = rest.split_at_mut(length(matrix).next_multiple_of(LINE));
            rest = others;
            let columns = matrix.columns().max(1);
            let rows = (CHUNK / columns).max(1);
            let parts = own[..length(matrix)].chunks_mut(rows * columns * dtype.size());
            tasks.extend(parts.enumerate().map(|(part, bytes)| (matrix, overflows, part * rows, bytes)));
        }
        tasks.into_par_iter().for_each_init(Vec::new, |wide, (matrix, overflows, first, bytes)| {
            let bits: &mut [u16] = cast_slice_mut(bytes);
            if matrix.round_rows(first..first + bits.len() / matrix.columns(), dtype, wide, bits) {
                overflows.store(true, Ordering::Relaxed);
            }
        });
    })?;
    let starts = matrices.iter().scan(0, |end, matrix| {
        let start = *end;
        *end += length(matrix).next_multiple_of(LINE);
        Some(start)
    });
    let rounded = |((matrix, start), overflows): ((&&MmapMatrix, usize), AtomicBool)| {
        let at = start..start + length(matrix);
        let matrix = MmapMatrix::new(bytes.clone(), at, dtype, matrix.rows(), matrix.columns())?;
        Ok(RoundedMatrix { matrix, overflows: overflows.into_inner() })
    };
    matrices.iter().zip(starts).zip(overflows).map(rounded).collect()
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
            for (RoundedMatrix { matrix: rounded, overflows }, matrix) in rounded.iter().zip(&matrices) {
                assert!(!overflows);
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
    fn only_finite_values_that_become_infinite_are_an_overflow() {
        let overflows = |value: f32, dtype| {
            let values = (0..6).map(|i| if i == 4 { value } else { 1.0 }).collect();
            let matrix = MmapMatrix::from_values(values, 2, 3).unwrap();
            rounded_matrices(&[&thirds(2, 2), &matrix], dtype)
                .unwrap()
                .iter()
                .map(|of| of.overflows)
                .collect::<Vec<_>>()
        };
        for (value, f16, bf16) in [
            (65504.0, false, false),
            (65520.0, true, false),
            (-1e5, true, false),
            (f32::MAX, true, true),
            (f32::INFINITY, false, false),
            (f32::NAN, false, false),
        ] {
            assert_eq!(overflows(value, StorageDtype::F16), [false, f16], "{value}");
            assert_eq!(overflows(value, StorageDtype::BF16), [false, bf16], "{value}");
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
