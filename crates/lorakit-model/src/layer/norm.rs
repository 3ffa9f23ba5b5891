//! RMSNorm and LayerNorm with their backward, over the last dimension of `[tokens, d]`.

use candle_core::{Result, Shape, Tensor, bail};
use lorakit_lora::kernels::op::{self, Input, Op};
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use lorakit_lora::kernels::uninit_vec::uninit_vec;
use lorakit_lora::kernels::vjp::with_vjp;
use rayon::prelude::*;

/// The kind of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) * w`, as in Mistral.
    Rms,
    /// `x / rms(x) * (1 + w)`, as in Gemma.
    RmsPlusOne,
    /// `(x - mean) / std(x) * w + b`, as in Phi.
    Layer,
}

/// A norm with its weight and, for LayerNorm, its bias.
#[derive(Clone)]
pub struct Norm {
    kind: NormKind,
    epsilon: f64,
    weight: Tensor,
    /// What is added to a weight that trains; to a frozen one it has been added.
    offset: f64,
    bias: Option<Tensor>,
}

impl Norm {
    /// `x / sqrt(mean(x²) + epsilon) * weight`.
    pub fn rms(weight: Tensor, epsilon: f64) -> Self {
        Self { kind: NormKind::Rms, epsilon, weight, offset: 0.0, bias: None }
    }

    /// `x / sqrt(mean(x²) + epsilon) * (1 + weight)`.
    pub fn rms_plus_one(weight: Tensor, epsilon: f64) -> Result<Self> {
        let kind = NormKind::RmsPlusOne;
        if weight.track_op() {
            return Ok(Self { kind, epsilon, weight, offset: 1.0, bias: None });
        }
        Ok(Self { kind, epsilon, weight: (weight + 1.0)?, offset: 0.0, bias: None })
    }

    /// `(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias`.
    pub fn layer(weight: Tensor, bias: Tensor, epsilon: f64) -> Self {
        Self { kind: NormKind::Layer, epsilon, weight, offset: 0.0, bias: Some(bias) }
    }

    /// Number of features.
    pub(crate) fn width(&self) -> usize {
        self.weight.elem_count()
    }

    /// What normed values are multiplied with, `[d]`.
    fn factors(&self) -> Result<Tensor> {
        if self.offset == 0.0 { Ok(self.weight.clone()) } else { &self.weight + self.offset }
    }

    /// The norm of rows on a CPU, if its weight is frozen and it has no bias.
    pub(crate) fn frozen(&self) -> Result<Option<FrozenNorm>> {
        if self.weight.track_op() || self.bias.is_some() || !self.weight.device().is_cpu() {
            return Ok(None);
        }
        Ok(Some(FrozenNorm { op: self.op(), weight: self.weight.to_vec1()? }))
    }

    /// The norm of every row of `x`, `[tokens, d]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (op, is_cpu) = (self.op(), x.device().is_cpu());
        match &self.bias {
            Some(bias) if is_cpu && !bias.track_op() => {
                op::binary(NormOp { bias: bias.to_vec1()?, ..op }, x, &self.factors()?)
            }
            Some(bias) if is_cpu => op::binary(op, x, &self.factors()?)?.broadcast_add(bias),
            Some(bias) => self.composed(x)?.broadcast_add(bias),
            None if is_cpu => op::binary(op, x, &self.factors()?),
            None => self.composed(x),
        }
    }

    /// The gradient of `x` from that of [`Norm::forward`]'s output on a CPU.
    pub(crate) fn input_gradient(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        op::input_gradient(&self.op(), [&x.contiguous()?, &self.weight], dy)
    }

    fn op(&self) -> NormOp {
        NormOp { kind: self.kind, epsilon: self.epsilon as f32, bias: Vec::new() }
    }

    /// The same as [`Norm::forward`] without the bias, on any device; the reference that tests compare with.
    ///
    /// With a frozen weight only `x` is kept for the backward: with `n = (x - mean) / std` and `g = dy w`,
    /// `dx = (g - n mean(g n) - mean(g)) / std`, where `mean(g)` and the mean of `x` are LayerNorm's only.
    pub fn composed(&self, x: &Tensor) -> Result<Tensor> {
        if self.weight.track_op() {
            return self.normed(x)?.0.broadcast_mul(&self.factors()?);
        }
        let (at, norm) = (x.detach(), self.clone());
        with_vjp(x, self.normed(&at)?.0.broadcast_mul(&self.weight)?, move |dy| {
            let (normed, std) = norm.normed(&at)?;
            let g = dy.broadcast_mul(&norm.weight)?;
            let gn = normed.broadcast_mul(&(&g * &normed)?.mean_keepdim(1)?)?;
            norm.centered(&g)?.sub(&gn)?.broadcast_div(&std)
        })
    }

    /// `x` less its mean, if this kind of norm subtracts it.
    fn centered(&self, x: &Tensor) -> Result<Tensor> {
        match self.kind {
            NormKind::Rms | NormKind::RmsPlusOne => Ok(x.clone()),
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(1)?),
        }
    }

    /// Every row of `x` divided by its std, centered if the kind says so, and the stds, `[tokens, 1]`.
    fn normed(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let centered = self.centered(x)?;
        let std = (centered.sqr()?.mean_keepdim(1)? + self.epsilon)?.sqrt()?;
        Ok((centered.broadcast_div(&std)?, std))
    }
}

struct NormOp {
    kind: NormKind,
    epsilon: f32,
    /// A bias that does not train, added in the same pass; none where there are no values.
    bias: Vec<f32>,
}

impl NormOp {
    /// Mean and `1 / std` of a row.
    #[inline(always)]
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = match self.kind {
            NormKind::Rms | NormKind::RmsPlusOne => 0.0,
            NormKind::Layer => sum(x, |v| v) / n,
        };
        let variance = sum(x, |v| (v - mean) * (v - mean)) / n;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }
}

/// A sum in eight partial sums, which the compiler turns into vector code, in the same order on every machine.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; 8];
    let chunks = x.chunks_exact(8);
    let rest: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, &v)| *l += f(v));
    }
    lanes.iter().sum::<f32>() + rest
}

#[inline(always)]
fn dot3(a: &[f32], b: &[f32], c: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let whole = a.len() / 8 * 8;
    for ((a, b), c) in a[..whole].chunks_exact(8).zip(b[..whole].chunks_exact(8)).zip(c[..whole].chunks_exact(8)) {
        for i in 0..8 {
            lanes[i] += a[i] * b[i] * c[i];
        }
    }
    lanes.iter().sum::<f32>() + (whole..a.len()).map(|i| a[i] * b[i] * c[i]).sum::<f32>()
}

impl Op<2> for NormOp {
    fn name(&self) -> &'static str {
        "norm"
    }

    /// `x`, `[tokens, d]`, and the weight, `[d]`.
    fn forward(&self, [x, w]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        let (tokens, d) = x.matrix()?;
        let (x, w) = (x.values, w.values);
        if w.len() != d {
            bail!("a norm of {} features was given {d}", w.len());
        }
        let write = |y: &mut [f32]| {
            y.par_chunks_mut(d)
                .with_min_len(16)
                .zip(x.par_chunks(d))
                .for_each(|(y, x)| simd::dispatch(NormRow { op: self, y, x, w }));
        };
        // SAFETY: each value of a row is set.
        Ok((unsafe { uninit_vec(x.len(), write) }, (tokens, d).into()))
    }

    /// With `n = (x - mean) / std` and `g = dy w`: `dx = (g - [mean(g)] - n mean(g n)) / std`, where the bracket is
    /// LayerNorm's only; `dw = sum over tokens of dy n`.
    fn backward(&self, [x, w]: [Input; 2], dy: &[f32], [of_x, of_w]: [bool; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        let d = x.matrix()?.1;
        let (x, w) = (x.values, w.values);
        Ok([of_x.then(|| self.input_gradient(x, w, dy)), of_w.then(|| self.weight_gradient(x, dy, d))])
    }
}

/// `y` of one row.
struct NormRow<'a> {
    op: &'a NormOp,
    y: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
}

impl WithSimd for NormRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (mean, rstd) = self.op.moments(self.x);
        for ((y, &x), &w) in self.y.iter_mut().zip(self.x).zip(self.w) {
            *y = (x - mean) * rstd * w;
        }
        self.y.iter_mut().zip(&self.op.bias).for_each(|(y, bias)| *y += bias);
    }
}

/// `dx` of one row; see the backward above.
struct NormRowBackward<'a> {
    op: &'a NormOp,
    dx: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
    dy: &'a [f32],
}

impl WithSimd for NormRowBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { op, dx, x, w, dy } = self;
        let (mean, rstd) = op.moments(x);
        for ((dx, &dy), &w) in dx.iter_mut().zip(dy).zip(w) {
            *dx = dy * w;
        }
        let mean_g = match op.kind {
            NormKind::Rms | NormKind::RmsPlusOne => 0.0,
            NormKind::Layer => sum(dx, |g| g) / x.len() as f32,
        };
        // mean(g n) = rstd (mean(dy w x) - mean(x) mean(dy w)).
        let mean_gn = rstd * (dot3(dy, w, x) / x.len() as f32 - mean * mean_g);
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = rstd * (*dx - mean_g - (x - mean) * rstd * mean_gn);
        }
    }
}

/// A norm without a bias on a CPU, whose weight is frozen.
pub(crate) struct FrozenNorm {
    op: NormOp,
    weight: Vec<f32>,
}

impl FrozenNorm {
    /// The norm of every row of `x`, written to `y`, rows of the norm's width.
    pub(crate) fn rows(&self, x: &[f32], y: &mut [f32]) {
        let (op, w) = (&self.op, &self.weight);
        for (y, x) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
            simd::dispatch(NormRow { op, y, x, w });
        }
    }

    /// The gradient of `x` from that of `y`, written to `dx`.
    pub(crate) fn rows_backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let (op, w) = (&self.op, &self.weight);
        let rows = x.chunks_exact(w.len()).zip(dy.chunks_exact(w.len()));
        for (dx, (x, dy)) in dx.chunks_exact_mut(w.len()).zip(rows) {
            simd::dispatch(NormRowBackward { op, dx, x, w, dy });
        }
    }
}

impl NormOp {
    fn input_gradient(&self, x: &[f32], w: &[f32], dy: &[f32]) -> Vec<f32> {
        let d = w.len();
        assert_eq!(dy.len(), x.len(), "gradients of all outputs");
        let write = |dx: &mut [f32]| {
            dx.par_chunks_mut(d)
                .with_min_len(16)
                .zip(x.par_chunks(d).zip(dy.par_chunks(d)))
                .for_each(|(dx, (x, dy))| simd::dispatch(NormRowBackward { op: self, dx, x, w, dy }));
        };
        // SAFETY: each value of a row is set before it is read.
        unsafe { uninit_vec(x.len(), write) }
    }

    fn weight_gradient(&self, x: &[f32], dy: &[f32], d: usize) -> Vec<f32> {
        let mut dw = vec![0.0; d];
        for (x, dy) in x.chunks_exact(d).zip(dy.chunks_exact(d)) {
            let (mean, rstd) = self.moments(x);
            for ((dw, &x), &dy) in dw.iter_mut().zip(x).zip(dy) {
                *dw += dy * (x - mean) * rstd;
            }
        }
        dw
    }
}
