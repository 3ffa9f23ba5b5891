//! The values of candle's CPU tensors as plain slices, for the ops that run on a CPU.

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

/// Loops over plain slices, to be called through [`with_widest_vectors`].
pub trait Loops {
    /// What they make, besides what they write.
    type Output;

    /// Runs them. To be marked `#[inline(always)]`, as all that it calls: what is not inlined is compiled for no machine
    /// in particular.
    fn run(self) -> Self::Output;
}

/// Runs `loops` as they are compiled for the widest vectors that this machine has. No operation is fused or reordered
/// by that: the values are the same on every machine.
#[inline]
pub fn with_widest_vectors<L: Loops>(loops: L) -> L::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: the machine was just asked for these instructions.
            return unsafe { with_avx512(loops) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { with_avx2(loops) };
        }
    }
    loops.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,avx512f,avx512dq")]
fn with_avx512<L: Loops>(loops: L) -> L::Output {
    loops.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2<L: Loops>(loops: L) -> L::Output {
    loops.run()
}
