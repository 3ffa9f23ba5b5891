//! A base's weight: a tensor, or a matrix that stays in its mapped file.

use crate::weights::mmap_matrix::MmapMatrix;
use candle_core::Tensor;

/// A weight of a base, `[out, in]`.
#[derive(Clone)]
pub enum Weight {
    /// On a device, or trained.
    Tensor(Tensor),
    /// Frozen, on the CPU.
    Mapped(MmapMatrix),
}

impl Weight {
    /// Whether tokens of 8 bits are multiplied with it.
    pub(crate) fn has_integer_products(&self) -> bool {
        matches!(self, Self::Mapped(matrix) if matrix.integer_type().is_some())
    }

    /// The matrix as a tensor; one that is not a tensor yet gets the type and device of `x`.
    pub(crate) fn tensor(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Tensor(weight) => Ok(weight.clone()),
            Self::Mapped(weight) => weight.to_tensor(x.dtype(), x.device()),
        }
    }
}
