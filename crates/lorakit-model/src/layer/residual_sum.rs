//! The sum of two tensors of one shape, on all threads of a CPU.

use candle_core::{Result, Shape, Tensor, bail};
use lorakit_lora::kernels::op::{self, Input, Op};
use lorakit_lora::kernels::output::written;
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use rayon::prelude::*;

/// `a + b`, differentiable.
pub(crate) fn sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if a.device().is_cpu() { op::binary(ResidualSum, a, b) } else { a + b }
}

/// `a + b` on a CPU, outside candle's graph.
pub(crate) fn untracked_sum(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    op::forward(&ResidualSum, [&a.contiguous()?, &b.contiguous()?])
}

/// Values of one task of the thread pool.
const CHUNK: usize = 1 << 14;

/// [`sum`] on a CPU.
struct ResidualSum;

/// The sums of some values.
struct SumChunk<'a>(&'a mut [f32], &'a [f32], &'a [f32]);

impl WithSimd for SumChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self(y, a, b) = self;
        y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + b);
    }
}

impl Op<2> for ResidualSum {
    fn name(&self) -> &'static str {
        "residual-sum"
    }

    fn forward(&self, [a, b]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        if a.dims != b.dims {
            bail!("a sum of tensors of dimensions {:?} and {:?}", a.dims, b.dims);
        }
        let write = |y: &mut [f32]| {
            let terms = a.values.par_chunks(CHUNK).zip(b.values.par_chunks(CHUNK));
            y.par_chunks_mut(CHUNK).zip(terms).for_each(|(y, (a, b))| simd::dispatch(SumChunk(y, a, b)));
        };
        // SAFETY: both terms have as many values as their sum.
        Ok((unsafe { written(a.values.len(), write) }, a.dims.into()))
    }

    fn backward(&self, _: [Input; 2], dy: &[f32], wanted: [bool; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        Ok(wanted.map(|wanted| wanted.then(|| dy.to_vec())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn sums_and_their_gradients_are_those_of_candle() {
        for count in [1, CHUNK + 5] {
            let values = |step: usize| (0..count).map(|i| ((i * step) % 17) as f32).collect::<Vec<_>>();
            let a = Var::from_vec(values(3), count, &Device::Cpu).unwrap();
            let b = Var::from_vec(values(5), count, &Device::Cpu).unwrap();
            let y = sum(a.as_tensor(), b.as_tensor()).unwrap();
            let expected = (a.as_tensor() + b.as_tensor()).unwrap();
            assert_eq!(y.to_vec1::<f32>().unwrap(), expected.to_vec1::<f32>().unwrap());
            let gradients = (y.sqr().unwrap().sum_all().unwrap()).backward().unwrap();
            let gradient = |of: &Var| gradients.get(of.as_tensor()).unwrap().to_vec1::<f32>().unwrap();
            let doubled = expected.affine(2.0, 0.0).unwrap().to_vec1::<f32>().unwrap();
            assert!(gradient(&a) == doubled && gradient(&b) == doubled);
        }
        let (one, two) =
            (Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu), Tensor::new(&[1f32, 2.0], &Device::Cpu));
        assert!(sum(&one.unwrap(), &two.unwrap()).unwrap_err().to_string().contains("dimensions"));
    }
}
