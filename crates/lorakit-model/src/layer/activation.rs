//! The activations of MLPs, with their backward.

use crate::vector_math::{sigmoid, tanh};
use candle_core::{Result, Shape, Tensor, bail};
use lorakit_lora::kernels::op::{self, Input, Op};
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use lorakit_lora::kernels::uninit_vec::uninit_vec;
use lorakit_lora::kernels::vjp::with_vjp;
use rayon::prelude::*;

/// The activation of an architecture's MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `silu(gate) * up`, as in Mistral; see [`swiglu`].
    SwiGlu,
    /// `gelu(gate) * up` with GELU in the tanh form, as in Gemma; see [`geglu`].
    GeGlu,
    /// GELU in the tanh form, as in Phi; see [`gelu_new`].
    GeluNew,
    /// `max(x, 0)`, as in the first T5; see [`relu`].
    Relu,
}

impl Activation {
    /// The activation of `x`: `[tokens, f]`, of `[tokens, 2 f]` where it has a gate.
    pub fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::SwiGlu => swiglu(x),
            Self::GeGlu => geglu(x),
            Self::GeluNew => gelu_new(x),
            Self::Relu => relu(x),
        }
    }

    /// Its op on a CPU.
    pub(crate) fn op(self) -> Box<dyn Op<1>> {
        match self {
            Self::SwiGlu => Box::new(GatedActivation(Gate::Silu)),
            Self::GeGlu => Box::new(GatedActivation(Gate::Gelu)),
            Self::GeluNew => Box::new(GeluNew),
            Self::Relu => Box::new(Relu),
        }
    }
}

/// `silu(gate) * up` of `x`, `[tokens, 2 f]`, whose halves are gate and up: `[tokens, f]`.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { op::unary(GatedActivation(Gate::Silu), x) } else { composed_swiglu(x) }
}

/// The same as [`swiglu`] on any device; the reference that tests compare with. Only `x` is kept for the backward: with
/// `s = sigmoid(gate)`, `dup = dy gate s` and `dgate = dy up s (1 + gate (1 - s))`.
pub fn composed_swiglu(x: &Tensor) -> Result<Tensor> {
    let f = x.dim(1)? / 2;
    let at = x.detach();
    let (gate, up) = (at.narrow(1, 0, f)?, at.narrow(1, f, f)?);
    with_vjp(x, (gate.silu()? * &up)?, move |dy| {
        let s = candle_nn::ops::sigmoid(&gate.contiguous()?)?;
        let silu = (&gate * &s)?;
        let derivative = ((&s + &silu)? - (&silu * &s)?)?;
        Tensor::cat(&[((dy * &up)? * derivative)?, (dy * silu)?], 1)
    })
}

/// `gelu(gate) * up` of `x`, `[tokens, 2 f]`, whose halves are gate and up: `[tokens, f]`. GELU is that of [`gelu_new`].
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { op::unary(GatedActivation(Gate::Gelu), x) } else { composed_geglu(x) }
}

/// The same as [`geglu`] on any device; the reference that tests compare with.
pub fn composed_geglu(x: &Tensor) -> Result<Tensor> {
    let f = x.dim(1)? / 2;
    composed_gelu_new(&x.narrow(1, 0, f)?)? * x.narrow(1, f, f)?
}

/// GELU in the tanh form, `0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))`, as transformers' `gelu_new`.
pub fn gelu_new(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { op::unary(GeluNew, x) } else { composed_gelu_new(x) }
}

/// The same as [`gelu_new`] on any device; the reference that tests compare with. Only `x` is kept for the backward, which is
/// our own: that of candle's GELU has constants of six digits. With `t = tanh(r (x + c x³))`,
/// `dx = dy (1 + t + x (1 - t²) r (1 + 3 c x²)) / 2`.
pub fn composed_gelu_new(x: &Tensor) -> Result<Tensor> {
    let at = x.detach();
    with_vjp(x, at.gelu()?, move |dy| {
        let (r, c) = (f64::from(ROOT), f64::from(CUBE));
        let squared = at.sqr()?;
        let t = (&at * squared.affine(r * c, r)?)?.tanh()?;
        let curve = ((&at * squared.affine(3.0 * r * c, r)?)? * t.sqr()?.affine(-1.0, 1.0)?)?;
        dy * ((curve + t)? + 1.0)?.affine(0.5, 0.0)?
    })
}

/// `max(x, 0)`, and NaN of NaN.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() { op::unary(Relu, x) } else { x.relu() }
}

/// Values of one task of the thread pool.
const CHUNK: usize = 1 << 14;

/// What the gate passes through before it multiplies.
#[derive(Clone, Copy)]
enum Gate {
    Silu,
    Gelu,
}

/// `y` of one token.
struct GatedToken<'a>(Gate, &'a mut [f32], &'a [f32]);

impl WithSimd for GatedToken<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self(kind, y, x) = self;
        let (gate, up) = x.split_at(y.len());
        let values = y.iter_mut().zip(gate).zip(up);
        match kind {
            Gate::Silu => values.for_each(|((y, &gate), &up)| *y = gate * sigmoid(gate) * up),
            Gate::Gelu => values.for_each(|((y, &gate), &up)| *y = gelu(gate) * up),
        }
    }
}

/// `dx` of one token.
struct GatedTokenBackward<'a>(Gate, &'a mut [f32], &'a [f32], &'a [f32]);

impl WithSimd for GatedTokenBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self(kind, dx, x, dy) = self;
        let (gate, up) = x.split_at(dy.len());
        let (dgate, dup) = dx.split_at_mut(dy.len());
        let values = dgate.iter_mut().zip(dup).zip(gate.iter().zip(up).zip(dy));
        match kind {
            Gate::Silu => values.for_each(|((dgate, dup), ((&gate, &up), &dy))| {
                let s = sigmoid(gate);
                *dup = dy * gate * s;
                *dgate = dy * up * s * (1.0 + gate * (1.0 - s));
            }),
            Gate::Gelu => values.for_each(|((dgate, dup), ((&gate, &up), &dy))| {
                *dup = dy * gelu(gate);
                *dgate = dy * up * gelu_derivative(gate);
            }),
        }
    }
}

/// The activation of a gate times the other half.
struct GatedActivation(Gate);

impl Op<1> for GatedActivation {
    fn name(&self) -> &'static str {
        match self.0 {
            Gate::Silu => "swiglu",
            Gate::Gelu => "geglu",
        }
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let (tokens, width) = x.matrix()?;
        if !width.is_multiple_of(2) {
            bail!("{} takes gate and up side by side and was given {width} columns", self.name());
        }
        let f = width / 2;
        let write = |y: &mut [f32]| {
            let rows = y.par_chunks_mut(f).with_min_len(CHUNK.div_ceil(f));
            rows.zip(x.values.par_chunks(width)).for_each(|(y, x)| simd::dispatch(GatedToken(self.0, y, x)));
        };
        // SAFETY: each row is set from its row of `x`.
        Ok((unsafe { uninit_vec(tokens * f, write) }, (tokens, f).into()))
    }

    fn backward(&self, [x]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        let f = x.matrix()?.1 / 2;
        assert_eq!(2 * dy.len(), x.values.len(), "gradients of all outputs");
        let write = |dx: &mut [f32]| {
            let rows = dx.par_chunks_mut(2 * f).with_min_len(CHUNK.div_ceil(f));
            rows.zip(x.values.par_chunks(2 * f).zip(dy.par_chunks(f)))
                .for_each(|(dx, (x, dy))| simd::dispatch(GatedTokenBackward(self.0, dx, x, dy)));
        };
        // SAFETY: both halves of each row are set, and `dy` has as many rows.
        Ok([Some(unsafe { uninit_vec(x.values.len(), write) })])
    }
}

struct Relu;

impl Op<1> for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let write = |y: &mut [f32]| {
            let chunks = y.par_chunks_mut(CHUNK).zip(x.values.par_chunks(CHUNK));
            chunks.for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, &x)| *y = if x <= 0.0 { 0.0 } else { x }));
        };
        // SAFETY: each value is set.
        Ok((unsafe { uninit_vec(x.values.len(), write) }, x.dims.into()))
    }

    fn backward(&self, [x]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        assert_eq!(dy.len(), x.values.len(), "gradients of all outputs");
        let write = |dx: &mut [f32]| {
            let chunks = dx.par_chunks_mut(CHUNK).zip(x.values.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)));
            let one = |((dx, x), dy): ((&mut f32, &f32), &f32)| *dx = if *x <= 0.0 { 0.0 } else { *dy };
            chunks.for_each(|(dx, (x, dy))| dx.iter_mut().zip(x).zip(dy).for_each(one));
        };
        // SAFETY: each value is set.
        Ok([Some(unsafe { uninit_vec(x.values.len(), write) })])
    }
}

struct GeluNew;

const ROOT: f32 = 0.797_884_6; // sqrt(2 / π)
const CUBE: f32 = 0.044_715;

/// `tanh(sqrt(2/π) (x + 0.044715 x³))`.
#[inline(always)]
fn inner(x: f32) -> f32 {
    tanh(ROOT * (x + CUBE * x * x * x))
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + inner(x))
}

/// The derivative of [`gelu`].
#[inline(always)]
fn gelu_derivative(x: f32) -> f32 {
    let t = inner(x);
    let du = ROOT * (1.0 + 3.0 * CUBE * x * x);
    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * du
}

/// `y` of some values.
struct GeluChunk<'a>(&'a mut [f32], &'a [f32]);

impl WithSimd for GeluChunk<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self(y, x) = self;
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = gelu(x));
    }
}

/// `dx` of some values.
struct GeluChunkBackward<'a>(&'a mut [f32], &'a [f32], &'a [f32]);

impl WithSimd for GeluChunkBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self(dx, x, dy) = self;
        dx.iter_mut().zip(x).zip(dy).for_each(|((dx, &x), &dy)| *dx = dy * gelu_derivative(x));
    }
}

impl Op<1> for GeluNew {
    fn name(&self) -> &'static str {
        "gelu-new"
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let write = |y: &mut [f32]| {
            y.par_chunks_mut(CHUNK).zip(x.values.par_chunks(CHUNK)).for_each(|(y, x)| simd::dispatch(GeluChunk(y, x)));
        };
        // SAFETY: each value is set.
        Ok((unsafe { uninit_vec(x.values.len(), write) }, x.dims.into()))
    }

    fn backward(&self, [x]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        assert_eq!(dy.len(), x.values.len(), "gradients of all outputs");
        let write = |dx: &mut [f32]| {
            dx.par_chunks_mut(CHUNK)
                .zip(x.values.par_chunks(CHUNK).zip(dy.par_chunks(CHUNK)))
                .for_each(|(dx, (x, dy))| simd::dispatch(GeluChunkBackward(dx, x, dy)));
        };
        // SAFETY: each value is set.
        Ok([Some(unsafe { uninit_vec(x.values.len(), write) })])
    }
}
