//! The values of candle's CPU tensors as plain slices.

use candle_core::{CpuStorage, Layout, Result, bail};

/// The values of a contiguous f32 storage; `op` names the caller in errors.
///
/// # Errors
/// If the type is not f32 or the layout not contiguous.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("{op} computes in f32 and was given {:?}", candle_core::backend::BackendStorage::dtype(storage));
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("{op} needs contiguous values and was given the layout {layout:?}"),
    }
}

/// The same as [`values`], to be changed in place.
pub fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout, op: &str) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("{op} computes in f32 and was given {:?}", candle_core::backend::BackendStorage::dtype(storage));
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut values[start..end]),
        None => bail!("{op} needs contiguous values and was given the layout {layout:?}"),
    }
}

/// Calls `read` with the values of a contiguous f32 tensor on a CPU.
///
/// # Errors
/// If the tensor is not a contiguous f32 tensor on a CPU.
pub fn with_values<T>(tensor: &candle_core::Tensor, op: &str, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => Ok(read(values(storage, layout, op)?)),
        _ => bail!("{op} was given a tensor that is not on the CPU"),
    }
}
