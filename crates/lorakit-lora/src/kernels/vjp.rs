//! Values with a vector-Jacobian product of their own, in place of the graph that candle would keep of how they were
//! made: what a frozen weight, a loss or an attention needs for its backward is less than what candle would hold.
//!
//! Both directions are tensor operations, so that one text serves every device that candle has kernels for.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// `y` as a function of `x`: the value is the one given, and where `dy` comes back, `x` gets `vjp(dy)`, which has the
/// shape of `x`. What `y` was made of must be detached: no other way back leads out of it.
///
/// Where `x` is not differentiated, `y` is returned as it is.
pub fn with_vjp(
    x: &Tensor,
    y: Tensor,
    vjp: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if x.track_op() { x.apply_op1(WithVjp { y: Mutex::new(Some(y)), vjp }) } else { Ok(y) }
}

struct WithVjp<F> {
    /// Until it is handed on: the graph keeps the op as long as it lives.
    y: Mutex<Option<Tensor>>,
    vjp: F,
}

impl<F> WithVjp<F> {
    fn value(&self) -> Result<Tensor> {
        match self.y.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(y) => Ok(y),
            None => bail!("vjp: the value was handed on before"),
        }
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor>> CustomOp1 for WithVjp<F> {
    fn name(&self) -> &'static str {
        "vjp"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = self.value()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => copied(storage, layout),
            _ => bail!("{}: argument and value are on different devices", self.name()),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let y = self.value()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => copied(storage, layout),
            _ => bail!("{}: argument and value are on different devices", self.name()),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        (self.vjp)(&dy.detach().contiguous()?).map(Some)
    }
}

/// The values of a layout as a storage of their own, which is what candle lets an op return.
fn copied<S: BackendStorage>(storage: &S, layout: &Layout) -> Result<(S, Shape)>
where
    S::Device: BackendDevice<Storage = S>,
{
    // What was just made stands alone in its storage, and is copied as it is; a view may be a part of it, in any order.
    if layout.is_contiguous() && layout.start_offset() == 0 {
        return Ok((storage.try_clone(layout)?, layout.shape().clone()));
    }
    let mut copy = storage.device().zeros_impl(layout.shape(), storage.dtype())?;
    storage.copy_strided_src(&mut copy, 0, layout)?;
    Ok((copy, layout.shape().clone()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use candle_core::{Device, Var};

    fn of(x: &Var, y: &Tensor) -> Vec<Vec<f32>> {
        let c = Tensor::new(&[[1f32, -2.0], [0.5, 3.0], [2.0, 1.0]], &Device::Cpu).unwrap();
        let gradients = (y * c).unwrap().sum_all().unwrap().backward().unwrap();
        gradients.get(x.as_tensor()).unwrap().to_vec2().unwrap()
    }

    /// The square, through a view whose values do not stand one behind the other.
    fn squared_of_transposed(x: &Tensor) -> Result<Tensor> {
        x.t()?.sqr()
    }

    #[test]
    fn a_given_product_is_the_gradient() {
        let x = Var::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        let graph = squared_of_transposed(x.as_tensor()).unwrap();
        let at = x.as_tensor().detach();
        let value = at.sqr().unwrap().t().unwrap();
        let given = with_vjp(x.as_tensor(), value, move |dy| dy.t()? * (2.0 * &at)?).unwrap();
        assert_eq!(given.to_vec2::<f32>().unwrap(), graph.to_vec2::<f32>().unwrap());
        assert_eq!(of(&x, &given), of(&x, &graph));
    }

    #[test]
    fn what_is_not_differentiated_is_left_alone() {
        let x = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let y = with_vjp(&x, x.sqr().unwrap(), |_| unreachable!()).unwrap();
        assert!(!y.track_op());
        assert_eq!(y.to_vec1::<f32>().unwrap(), [1.0, 4.0]);
    }
}
