//! CUDA capability checks.

use candle_core::{DType, Device, Result};

/// Why a device cannot multiply matrices of this type; none where it can.
#[cfg(feature = "cuda")]
pub(crate) fn unsupported_dtype(device: &Device, dtype: DType) -> Result<Option<String>> {
    /// GPUs before Ampere have no bf16, and candle has no bf16 kernels for them.
    const AMPERE: (i32, i32) = (8, 0);
    let Device::Cuda(gpu) = device else { return Ok(None) };
    let (major, minor) = gpu.cuda_stream().context().compute_capability().map_err(candle_core::Error::wrap)?;
    Ok((dtype == DType::BF16 && (major, minor) < AMPERE).then(|| {
        format!(
            "bf16 weights need a GPU of compute capability 8.0 or later, and this one's is {major}.{minor}; try \
             --dtype f16 or --dtype f32"
        )
    }))
}

/// Without the feature there is no GPU.
#[cfg(not(feature = "cuda"))]
pub(crate) fn unsupported_dtype(_: &Device, _: DType) -> Result<Option<String>> {
    Ok(None)
}
