//! The values of candle's CPU tensors as plain slices.

use candle_core::{CpuStorage, Layout, Result, Shape, bail};

/// The values of a contiguous f32 storage.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout, op: &str) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("{op} computes in f32 and was given {:?}", candle_core::backend::BackendStorage::dtype(storage));
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("{op} needs contiguous values, and was given the layout {layout:?}"),
    }
}

/// The values of a contiguous f32 storage, to be changed in place.
pub fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout, op: &str) -> Result<&'a mut [f32]> {
    let CpuStorage::F32(values) = storage else {
        bail!("{op} computes in f32 and was given {:?}", candle_core::backend::BackendStorage::dtype(storage));
    };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&mut values[start..end]),
        None => bail!("{op} needs contiguous values, and was given the layout {layout:?}"),
    }
}

/// What an op returns: f32 values with their shape.
pub fn result(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// Calls `read` with the values of a contiguous f32 tensor on a CPU.
pub fn with_values<T>(tensor: &candle_core::Tensor, op: &str, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(storage) => Ok(read(values(storage, layout, op)?)),
        _ => bail!("{op} was given a tensor that is not on the CPU"),
    }
}
