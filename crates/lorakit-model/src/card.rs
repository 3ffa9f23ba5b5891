//! What a card must be able to do.

use anyhow::Result;
use candle_core::{DType, Device};

/// Fails where a card has no arithmetic of this type.
#[cfg(feature = "cuda")]
pub(crate) fn ensure_multiplies(device: &Device, dtype: DType) -> Result<()> {
    /// Before Ampere cards have no bf16, and candle no kernels for it there.
    const AMPERE: (i32, i32) = (8, 0);
    let Device::Cuda(card) = device else { return Ok(()) };
    let capability = card.cuda_stream().context().compute_capability()?;
    anyhow::ensure!(
        dtype != DType::BF16 || capability >= AMPERE,
        "bf16 weights need a card of compute capability 8.0 or later, and this one's is {}.{}; try --dtype f16 or \
         --dtype f32",
        capability.0,
        capability.1
    );
    Ok(())
}

/// There is no card where none can be used.
#[cfg(not(feature = "cuda"))]
pub(crate) fn ensure_multiplies(_: &Device, _: DType) -> Result<()> {
    Ok(())
}
