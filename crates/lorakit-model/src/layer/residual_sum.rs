//! The residual stream with what attention or MLP add to it, times a constant in some bases, on all threads of a CPU.

use candle_core::{Result, Shape, Tensor, bail};
use lorakit_lora::kernels::op::{self, Input, Op};
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use lorakit_lora::kernels::uninit_vec::uninit_vec;
use rayon::prelude::*;

/// `a + factor b`, differentiable.
pub(crate) fn sum(a: &Tensor, b: &Tensor, factor: f64) -> Result<Tensor> {
    match a.device().is_cpu() {
        true => op::binary(ResidualSum::new(factor), a, b),
        false if factor == 1.0 => a + b,
        false => a + (b * factor)?,
    }
}

/// `a + factor b` on a CPU, outside candle's graph.
pub(crate) fn untracked_sum(a: &Tensor, b: &Tensor, factor: f64) -> Result<Tensor> {
    op::forward(&ResidualSum::new(factor), [&a.contiguous()?, &b.contiguous()?])
}

/// The gradient of `b` from that of `a + factor b` on a CPU.
pub(crate) fn term_gradient(dy: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 1.0 { Ok(dy.clone()) } else { op::forward(&Product(factor as f32), [&dy.contiguous()?]) }
}

/// Values of one task of the thread pool.
const CHUNK: usize = 1 << 14;

/// [`sum`] on a CPU.
struct ResidualSum {
    factor: f32,
}

impl ResidualSum {
    fn new(factor: f64) -> Self {
        Self { factor: factor as f32 }
    }
}

/// The sums of some values.
struct SumChunk<'a> {
    y: &'a mut [f32],
    a: &'a [f32],
    b: &'a [f32],
    factor: f32,
}

impl WithSimd for SumChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { y, a, b, factor } = self;
        y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = a + factor * b);
    }
}

/// Values times a constant.
struct Product(f32);

impl Op<1> for Product {
    fn name(&self) -> &'static str {
        "constant-product"
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let write = |y: &mut [f32]| {
            let chunks = y.par_chunks_mut(CHUNK).zip(x.values.par_chunks(CHUNK));
            chunks.for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y = self.0 * x));
        };
        // SAFETY: each value is set.
        Ok((unsafe { uninit_vec(x.values.len(), write) }, x.dims.into()))
    }

    fn backward(&self, _: [Input; 1], dy: &[f32], wanted: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        Ok(wanted.map(|wanted| wanted.then(|| dy.iter().map(|dy| self.0 * dy).collect())))
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
            let factor = self.factor;
            y.par_chunks_mut(CHUNK).zip(terms).for_each(|(y, (a, b))| simd::dispatch(SumChunk { y, a, b, factor }));
        };
        // SAFETY: both terms have as many values as their sum.
        Ok((unsafe { uninit_vec(a.values.len(), write) }, a.dims.into()))
    }

    fn backward(&self, _: [Input; 2], dy: &[f32], [of_a, of_b]: [bool; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        Ok([of_a.then(|| dy.to_vec()), of_b.then(|| dy.iter().map(|dy| self.factor * dy).collect())])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn sums_and_their_gradients_are_those_of_candle() {
        for (count, factor) in [(1, 1.0), (CHUNK + 5, 1.0), (CHUNK + 5, 0.22)] {
            let values = |step: usize| (0..count).map(|i| ((i * step) % 17) as f32).collect::<Vec<_>>();
            let a = Var::from_vec(values(3), count, &Device::Cpu).unwrap();
            let b = Var::from_vec(values(5), count, &Device::Cpu).unwrap();
            let y = sum(a.as_tensor(), b.as_tensor(), factor).unwrap();
            let expected = (a.as_tensor() + (b.as_tensor() * factor).unwrap()).unwrap();
            let numbers = |tensor: &Tensor| tensor.to_vec1::<f32>().unwrap();
            assert_eq!(numbers(&y), numbers(&expected));
            assert_eq!(numbers(&untracked_sum(a.as_tensor(), b.as_tensor(), factor).unwrap()), numbers(&expected));
            let gradients = |y: &Tensor| y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let (found, wanted) = (gradients(&y), gradients(&expected));
            for term in [&a, &b] {
                assert_eq!(
                    numbers(found.get(term.as_tensor()).unwrap()),
                    numbers(wanted.get(term.as_tensor()).unwrap())
                );
            }
            let dy = expected.affine(2.0, 0.0).unwrap();
            let of_b = term_gradient(&dy, factor).unwrap();
            assert_eq!(numbers(&of_b), numbers(wanted.get(b.as_tensor()).unwrap()));
        }
        let (one, two) =
            (Tensor::zeros(1, candle_core::DType::F32, &Device::Cpu), Tensor::new(&[1f32, 2.0], &Device::Cpu));
        assert!(sum(&one.unwrap(), &two.unwrap(), 1.0).unwrap_err().to_string().contains("dimensions"));
    }
}
