//! A differentiable op of contiguous f32 values on a CPU, written once.
//!
//! An [`Op`] is a pair of functions over slices, forward and backward. [`unary`], [`binary`] and [`ternary`] put it into
//! candle's graph; [`forward`] and [`backward`] call it outside any graph, as a tape does.

use crate::kernels::cpu_tensor;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor, bail};

/// One input of an op: contiguous values with their dimensions.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The values, row-major.
    pub values: &'a [f32],
    /// Their dimensions.
    pub dims: &'a [usize],
}

impl Input<'_> {
    const EMPTY: Self = Self { values: &[], dims: &[] };

    /// Rows and columns of a matrix.
    ///
    /// # Errors
    /// If the input is no matrix.
    pub fn matrix(&self) -> Result<(usize, usize)> {
        match *self.dims {
            [rows, columns] => Ok((rows, columns)),
            _ => bail!("expected a matrix, found dimensions {:?}", self.dims),
        }
    }
}

/// A function of `N` tensors with its vector-Jacobian product.
pub trait Op<const N: usize>: Send + Sync {
    /// The op's name, for errors.
    fn name(&self) -> &'static str;

    /// The values and the shape of the output.
    fn forward(&self, inputs: [Input; N]) -> Result<(Vec<f32>, Shape)>;

    /// The gradient of each input that is `wanted`, in its shape, from the gradient `dy` of the output.
    fn backward(&self, inputs: [Input; N], dy: &[f32], wanted: [bool; N]) -> Result<[Option<Vec<f32>>; N]>;
}

/// `op(x)` in candle's graph.
pub fn unary(op: impl Op<1> + 'static, x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(InGraph(op))
}

/// `op(a, b)` in candle's graph.
pub fn binary(op: impl Op<2> + 'static, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op2(&b.contiguous()?, InGraph(op))
}

/// `op(a, b, c)` in candle's graph.
pub fn ternary(op: impl Op<3> + 'static, a: &Tensor, b: &Tensor, c: &Tensor) -> Result<Tensor> {
    a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, InGraph(op))
}

/// The output of `op` outside any graph.
///
/// # Errors
/// Those of the op, or if an input is not contiguous f32 on a CPU.
pub fn forward<const N: usize>(op: &dyn Op<N>, inputs: [&Tensor; N]) -> Result<Tensor> {
    let (values, shape) = with_inputs(op, inputs, |inputs| op.forward(inputs))?;
    Tensor::from_vec(values, shape, &candle_core::Device::Cpu)
}

/// The gradients of the `wanted` inputs of `op`, from that of its output.
///
/// # Errors
/// Those of the op, or if an input is not contiguous f32 on a CPU.
pub fn backward<const N: usize>(
    op: &dyn Op<N>,
    inputs: [&Tensor; N],
    dy: &Tensor,
    wanted: [bool; N],
) -> Result<[Option<Tensor>; N]> {
    let dy = dy.contiguous()?;
    let gradients = with_inputs(op, inputs, |values| {
        cpu_tensor::with_values(&dy, op.name(), |dy| op.backward(values, dy, wanted))?
    })?;
    let mut tensors = [const { None }; N];
    for ((tensor, gradient), input) in tensors.iter_mut().zip(gradients).zip(inputs) {
        *tensor = gradient.map(|values| Tensor::from_vec(values, input.shape(), input.device())).transpose()?;
    }
    Ok(tensors)
}

/// The gradient of the first input of `op` alone; see [`backward`].
pub fn input_gradient<const N: usize>(op: &dyn Op<N>, inputs: [&Tensor; N], dy: &Tensor) -> Result<Tensor> {
    let mut wanted = [false; N];
    wanted[0] = true;
    match backward(op, inputs, dy, wanted)?.into_iter().next().flatten() {
        Some(gradient) => Ok(gradient),
        None => bail!("{} left out the gradient of its input", op.name()),
    }
}

/// Calls `call` with the values of `tensors`.
fn with_inputs<const N: usize, T>(
    op: &dyn Op<N>,
    tensors: [&Tensor; N],
    call: impl FnOnce([Input; N]) -> Result<T>,
) -> Result<T> {
    let tensors = tensors.map(Tensor::storage_and_layout);
    let mut inputs = [Input::EMPTY; N];
    for (input, (storage, layout)) in inputs.iter_mut().zip(&tensors) {
        let Storage::Cpu(storage) = &**storage else { bail!("{} runs on the CPU only", op.name()) };
        *input = Input { values: cpu_tensor::values(storage, layout, op.name())?, dims: layout.dims() };
    }
    call(inputs)
}

/// An op in candle's graph.
struct InGraph<O>(O);

/// The arguments of candle's forward as inputs.
fn inputs<'a, const N: usize>(of: [(&'a CpuStorage, &'a Layout); N], name: &str) -> Result<[Input<'a>; N]> {
    let mut inputs = [Input::EMPTY; N];
    for (input, (storage, layout)) in inputs.iter_mut().zip(of) {
        *input = Input { values: cpu_tensor::values(storage, layout, name)?, dims: layout.dims() };
    }
    Ok(inputs)
}

fn storage((values, shape): (Vec<f32>, Shape)) -> (CpuStorage, Shape) {
    (CpuStorage::F32(values), shape)
}

impl<O: Op<1>> CustomOp1 for InGraph<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.forward(inputs([(x, lx)], self.0.name())?).map(storage)
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let [dx] = backward(&self.0, [x], dy, [x.track_op()])?;
        Ok(dx)
    }
}

impl<O: Op<2>> CustomOp2 for InGraph<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, a: &CpuStorage, la: &Layout, b: &CpuStorage, lb: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.forward(inputs([(a, la), (b, lb)], self.0.name())?).map(storage)
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        backward(&self.0, [a, b], dy, [a, b].map(Tensor::track_op)).map(|[da, db]| (da, db))
    }
}

impl<O: Op<3>> CustomOp3 for InGraph<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
        c: &CpuStorage,
        lc: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.0.forward(inputs([(a, la), (b, lb), (c, lc)], self.0.name())?).map(storage)
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        backward(&self.0, [a, b, c], dy, [a, b, c].map(Tensor::track_op)).map(|[da, db, dc]| (da, db, dc))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::{Device, Var};

    /// `a * b`, value by value.
    struct Product;

    impl Op<2> for Product {
        fn name(&self) -> &'static str {
            "product"
        }

        fn forward(&self, [a, b]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
            Ok((a.values.iter().zip(b.values).map(|(a, b)| a * b).collect(), a.dims.into()))
        }

        fn backward(&self, [a, b]: [Input; 2], dy: &[f32], [of_a, of_b]: [bool; 2]) -> Result<[Option<Vec<f32>>; 2]> {
            let times = |x: &[f32]| dy.iter().zip(x).map(|(dy, x)| dy * x).collect();
            Ok([of_a.then(|| times(b.values)), of_b.then(|| times(a.values))])
        }
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn the_graph_and_the_direct_calls_agree_on_a_transposed_view() {
        let a = Var::new(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.0]], &Device::Cpu).unwrap();
        let b = Tensor::new(&[[7f32, 8.0], [9.0, 10.0], [11.0, 12.0]], &Device::Cpu).unwrap();
        let y = binary(Product, &a.t().unwrap(), &b).unwrap();
        assert_eq!(values(&y), [7.0, 32.0, 18.0, 50.0, 33.0, 72.0]);
        let in_graph = y.sum_all().unwrap().backward().unwrap();
        let at = a.as_detached_tensor().t().unwrap().contiguous().unwrap();
        assert_eq!(values(&forward(&Product, [&at, &b]).unwrap()), values(&y));
        let [da, db] = backward(&Product, [&at, &b], &y.ones_like().unwrap(), [true, false]).unwrap();
        assert_eq!(values(&da.unwrap().t().unwrap()), values(in_graph.get(a.as_tensor()).unwrap()));
        assert!(db.is_none());
    }

    #[test]
    fn inputs_that_are_not_contiguous_f32_are_errors() {
        let a = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let error = |b: &Tensor| forward(&Product, [&a, b]).unwrap_err().to_string();
        assert!(error(&a.t().unwrap()).contains("contiguous"));
        assert!(error(&a.to_dtype(candle_core::DType::F64).unwrap()).contains("f32"));
    }
}
