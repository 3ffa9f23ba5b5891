//! Values with a vector-Jacobian product of their own, in place of the graph that candle would keep: what a frozen weight,
//! a loss or an attention needs for its backward is less than what candle would hold.
//!
//! Both directions are tensor operations, so that one implementation serves every device that candle has kernels for.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, bail};
use std::sync::{Mutex, PoisonError};

/// `y` as a function of `x`: the value is the one given, and the gradient of `x` is `vjp(dy)`, in the shape of `x`. `y` must
/// be detached: no other gradient flows through it.
///
/// If `x` is not differentiated, `y` is returned as it is.
pub fn with_vjp(
    x: &Tensor,
    y: Tensor,
    vjp: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if x.track_op() { x.apply_op1(WithVjp { y: Mutex::new(Some(y)), vjp }) } else { Ok(y) }
}

struct WithVjp<F> {
    /// Taken by the forward, so that the graph, which keeps the op, does not keep the value.
    y: Mutex<Option<Tensor>>,
    vjp: F,
}

impl<F> WithVjp<F> {
    fn value(&self) -> Result<Tensor> {
        match self.y.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(y) => Ok(y),
            None => bail!("vjp: the forward ran twice"),
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
            _ => bail!("{}: the argument and the value are on different devices", self.name()),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let y = self.value()?;
        let (storage, layout) = y.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => copied(storage, layout),
            _ => bail!("{}: the argument and the value are on different devices", self.name()),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        (self.vjp)(&dy.detach().contiguous()?).map(Some)
    }
}

/// The values of a layout in a storage of their own, which candle requires of an op.
fn copied<S: BackendStorage>(storage: &S, layout: &Layout) -> Result<(S, Shape)>
where
    S::Device: BackendDevice<Storage = S>,
{
    // A new tensor fills its storage, which is cloned as it is; a view may be any part of it in any order.
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

    fn gradient(x: &Var, y: &Tensor) -> Vec<Vec<f32>> {
        let c = Tensor::new(&[[1f32, -2.0], [0.5, 3.0], [2.0, 1.0]], &Device::Cpu).unwrap();
        let gradients = (y * c).unwrap().sum_all().unwrap().backward().unwrap();
        gradients.get(x.as_tensor()).unwrap().to_vec2().unwrap()
    }

    /// The square of a view that is not contiguous.
    fn squared_of_transposed(x: &Tensor) -> Result<Tensor> {
        x.t()?.sqr()
    }

    #[test]
    fn the_given_product_is_the_gradient() {
        let x = Var::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        let graph = squared_of_transposed(x.as_tensor()).unwrap();
        let at = x.as_tensor().detach();
        let value = at.sqr().unwrap().t().unwrap();
        let given = with_vjp(x.as_tensor(), value, move |dy| dy.t()? * (2.0 * &at)?).unwrap();
        assert_eq!(given.to_vec2::<f32>().unwrap(), graph.to_vec2::<f32>().unwrap());
        assert_eq!(gradient(&x, &given), gradient(&x, &graph));
    }

    #[test]
    fn a_value_of_an_untracked_argument_is_returned_as_it_is() {
        let x = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let y = with_vjp(&x, x.sqr().unwrap(), |_| unreachable!()).unwrap();
        assert!(!y.track_op());
        assert_eq!(y.to_vec1::<f32>().unwrap(), [1.0, 4.0]);
    }
}
