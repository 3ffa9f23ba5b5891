//! Soft caps: `cap tanh(x / cap)`, of attention scores and of logits (Gemma 2).

use crate::vector_math::tanh;
use candle_core::{Result, Tensor};
use lorakit_lora::kernels::simd::{Simd, WithSimd};

/// Caps values in place.
pub(crate) struct SoftCap<'a> {
    pub(crate) values: &'a mut [f32],
    pub(crate) cap: f32,
}

impl WithSimd for SoftCap<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { values, cap } = self;
        let inverse = 1.0 / cap;
        values.iter_mut().for_each(|x| *x = cap * tanh(*x * inverse));
    }
}

/// The derivative of the cap where its output is `y`: `1 - (y / cap)²`.
#[inline(always)]
pub(crate) fn derivative(y: f32, cap: f32) -> f32 {
    let t = y / cap;
    1.0 - t * t
}

/// The same as [`SoftCap`] on any device, and differentiable.
pub(crate) fn composed_soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    (x / cap)?.tanh()? * cap
}

/// The derivatives of the cap where its outputs are `y`.
pub(crate) fn composed_derivative(y: &Tensor, cap: f64) -> Result<Tensor> {
    (y / cap)?.sqr()?.affine(-1.0, 1.0)
}
