//! Values with a vector-Jacobian product of their own, in place of the graph that candle would keep of how they were
//! made: what a frozen weight, a loss or an attention needs for its backward is less than what candle would hold.
//!
//! Both directions are tensor operations, so that one text serves every device that candle has kernels for.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, Var, bail};

/// `y` as a function of `x`: the value is the one given, and where `dy` comes back, `x` gets `vjp(dy)`, which has the
/// shape of `x`. What `y` was made of must be detached: no other way back leads out of it.
///
/// Where `x` is not differentiated, `y` is returned as it is.
pub fn with_vjp(
    x: &Tensor,
    y: Tensor,
    vjp: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if x.track_op() { x.apply_op1(WithVjp { y, vjp }) } else { Ok(y) }
}

/// `f(x)`, of which nothing is kept but the result: its backward makes `f(x)` again, with a graph, and goes through it.
/// Only `x` gets a gradient.
pub fn recomputed(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static) -> Result<Tensor> {
    let at = x.detach();
    let y = f(&at)?;
    with_vjp(x, y, move |dy| {
        let x = Var::from_tensor(&at)?;
        let mut gradients = (f(x.as_tensor())? * dy)?.sum_all()?.backward()?;
        match gradients.remove(x.as_tensor()) {
            Some(dx) => Ok(dx),
            None => x.zeros_like(),
        }
    })
}

struct WithVjp<F> {
    y: Tensor,
    vjp: F,
}

impl<F: Fn(&Tensor) -> Result<Tensor>> CustomOp1 for WithVjp<F> {
    fn name(&self) -> &'static str {
        "vjp"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.y.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => copied(storage, layout),
            _ => bail!("{}: argument and value are on different devices", self.name()),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.y.storage_and_layout();
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
    let mut copy = storage.device().zeros_impl(layout.shape(), storage.dtype())?;
    storage.copy_strided_src(&mut copy, 0, layout)?;
    Ok((copy, layout.shape().clone()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use candle_core::Device;

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
    fn what_is_made_again_has_the_gradient_of_what_was_kept() {
        let x = Var::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        // Within a longer graph: the op's argument is no variable itself.
        let whole = |f: &dyn Fn(&Tensor) -> Result<Tensor>| f(&(x.as_tensor() * 3.0).unwrap()).unwrap();
        let (kept, made) = (whole(&squared_of_transposed), whole(&|x| recomputed(x, squared_of_transposed)));
        assert_eq!(made.to_vec2::<f32>().unwrap(), kept.to_vec2::<f32>().unwrap());
        assert_eq!(of(&x, &made), of(&x, &kept));
    }

    #[test]
    fn what_is_not_differentiated_is_left_alone() {
        let x = Tensor::new(&[1f32, 2.0], &Device::Cpu).unwrap();
        let y = with_vjp(&x, x.sqr().unwrap(), |_| unreachable!()).unwrap();
        assert!(!y.track_op());
        assert_eq!(y.to_vec1::<f32>().unwrap(), [1.0, 4.0]);
    }
}
