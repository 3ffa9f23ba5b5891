//! RMSNorm and LayerNorm with their backward, over the last dimension of `[tokens, d]`.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use lorakit_lora::cpu::{self, Loops};
use lorakit_lora::vjp::with_vjp;
use rayon::prelude::*;

/// Which norm: the two differ in whether the mean is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `x / rms(x) * w`, as in Mistral.
    Rms,
    /// `(x - mean) / std(x) * w + b`, as in Phi.
    Layer,
}

/// A norm with its weight and, for LayerNorm, its bias.
#[derive(Clone)]
pub struct Norm {
    kind: Kind,
    epsilon: f64,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Norm {
    /// `x / sqrt(mean(x²) + epsilon) * weight`.
    pub fn rms(weight: Tensor, epsilon: f64) -> Self {
        Self { kind: Kind::Rms, epsilon, weight, bias: None }
    }

    /// `(x - mean(x)) / sqrt(var(x) + epsilon) * weight + bias`.
    pub fn layer(weight: Tensor, bias: Tensor, epsilon: f64) -> Self {
        Self { kind: Kind::Layer, epsilon, weight, bias: Some(bias) }
    }

    /// The norm of every row of `x`, `[tokens, d]`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = if x.device().is_cpu() {
            x.contiguous()?.apply_op2(&self.weight, NormOp { kind: self.kind, epsilon: self.epsilon as f32 })?
        } else {
            self.plain(x)?
        };
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }

    /// The gradient of `x` from that of what [`Norm::forward`] made of it on a CPU.
    pub(crate) fn backward(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (x, dy) = (x.contiguous()?, dy.contiguous()?);
        NormOp { kind: self.kind, epsilon: self.epsilon as f32 }.input_gradient(&x, &self.weight, &dy, x.dim(1)?)
    }

    /// What [`Norm::forward`] is without the bias, by candle's own ops, for devices without a kernel.
    ///
    /// Where the weight is frozen, `x` alone is kept for the backward: with `n = (x - mean) / spread` and `g = dy w`,
    /// `dx = (g - n mean(g n) - mean(g)) / spread`, of which the last mean and that of `x` are LayerNorm's alone.
    pub fn plain(&self, x: &Tensor) -> Result<Tensor> {
        if self.weight.track_op() {
            return self.normed(x)?.0.broadcast_mul(&self.weight);
        }
        let (at, norm) = (x.detach(), self.clone());
        with_vjp(x, self.normed(&at)?.0.broadcast_mul(&self.weight)?, move |dy| {
            let (normed, spread) = norm.normed(&at)?;
            let g = dy.broadcast_mul(&norm.weight)?;
            let along = normed.broadcast_mul(&(&g * &normed)?.mean_keepdim(1)?)?;
            norm.centred(&g)?.sub(&along)?.broadcast_div(&spread)
        })
    }

    /// `x` without the mean that this kind of norm takes away.
    fn centred(&self, x: &Tensor) -> Result<Tensor> {
        match self.kind {
            Kind::Rms => Ok(x.clone()),
            Kind::Layer => x.broadcast_sub(&x.mean_keepdim(1)?),
        }
    }

    /// Every row of `x` centred and divided by its spread, and the spreads, `[tokens, 1]`.
    fn normed(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        let centred = self.centred(x)?;
        let spread = (centred.sqr()?.mean_keepdim(1)? + self.epsilon)?.sqrt()?;
        Ok((centred.broadcast_div(&spread)?, spread))
    }
}

struct NormOp {
    kind: Kind,
    epsilon: f32,
}

impl NormOp {
    /// Mean and reciprocal spread of a row.
    #[inline(always)]
    fn moments(&self, x: &[f32]) -> (f32, f32) {
        let n = x.len() as f32;
        let mean = match self.kind {
            Kind::Rms => 0.0,
            Kind::Layer => sum(x, |v| v) / n,
        };
        let variance = sum(x, |v| (v - mean) * (v - mean)) / n;
        (mean, 1.0 / (variance + self.epsilon).sqrt())
    }
}

/// A sum in eight lanes, which the compiler turns into vector code and whose order never changes.
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

impl CustomOp2 for NormOp {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout, w: &CpuStorage, lw: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, d) = lx.shape().dims2()?;
        let (x, w) = (cpu::values(x, lx, self.name())?, cpu::values(w, lw, self.name())?);
        if w.len() != d {
            bail!("a norm of {} features was given {d}", w.len());
        }
        let mut y = vec![0.0; x.len()];
        y.par_chunks_mut(d)
            .with_min_len(16)
            .zip(x.par_chunks(d))
            .for_each(|(y, x)| cpu::with_widest_vectors(Row { op: self, y, x, w }));
        cpu::result(y, (tokens, d))
    }

    /// With `n = (x - mean) / spread` and `g = dy w`: `dx = (g - [mean(g)] - n mean(g n)) / spread`, where the
    /// bracket is LayerNorm's only; `dw = sum over tokens of dy n`.
    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (_, d) = x.dims2()?;
        let dx = if x.track_op() { Some(self.input_gradient(x, w, &dy, d)?) } else { None };
        let dw = if w.track_op() { Some(self.weight_gradient(x, &dy, d)?) } else { None };
        Ok((dx, dw))
    }
}

/// `y` of one row.
struct Row<'a> {
    op: &'a NormOp,
    y: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
}

impl Loops for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (mean, inverse) = self.op.moments(self.x);
        for ((y, &x), &w) in self.y.iter_mut().zip(self.x).zip(self.w) {
            *y = (x - mean) * inverse * w;
        }
    }
}

/// `dx` of one row; see the backward above.
struct RowBackward<'a> {
    op: &'a NormOp,
    dx: &'a mut [f32],
    x: &'a [f32],
    w: &'a [f32],
    dy: &'a [f32],
}

impl Loops for RowBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { op, dx, x, w, dy } = self;
        let (mean, inverse) = op.moments(x);
        for ((dx, &dy), &w) in dx.iter_mut().zip(dy).zip(w) {
            *dx = dy * w;
        }
        let share = match op.kind {
            Kind::Rms => 0.0,
            Kind::Layer => sum(dx, |g| g) / x.len() as f32,
        };
        // mean(g n) = inverse (mean(dy w x) - mean(x) mean(dy w)).
        let along = inverse * (dot3(dy, w, x) / x.len() as f32 - mean * share);
        for (dx, &x) in dx.iter_mut().zip(x) {
            *dx = inverse * (*dx - share - (x - mean) * inverse * along);
        }
    }
}

impl NormOp {
    fn input_gradient(&self, x: &Tensor, w: &Tensor, dy: &Tensor, d: usize) -> Result<Tensor> {
        let name = self.name();
        let values = cpu::with_values(x, name, |x| {
            cpu::with_values(w, name, |w| {
                cpu::with_values(dy, name, |dy| {
                    let mut dx = vec![0.0; x.len()];
                    dx.par_chunks_mut(d)
                        .with_min_len(16)
                        .zip(x.par_chunks(d).zip(dy.par_chunks(d)))
                        .for_each(|(dx, (x, dy))| cpu::with_widest_vectors(RowBackward { op: self, dx, x, w, dy }));
                    dx
                })
            })
        })???;
        Tensor::from_vec(values, x.shape(), x.device())
    }

    fn weight_gradient(&self, x: &Tensor, dy: &Tensor, d: usize) -> Result<Tensor> {
        let name = self.name();
        let values = cpu::with_values(x, name, |x| {
            cpu::with_values(dy, name, |dy| {
                let mut dw = vec![0.0; d];
                for (x, dy) in x.chunks_exact(d).zip(dy.chunks_exact(d)) {
                    let (mean, inverse) = self.moments(x);
                    for ((dw, &x), &dy) in dw.iter_mut().zip(x).zip(dy) {
                        *dw += dy * (x - mean) * inverse;
                    }
                }
                dw
            })
        })??;
        Tensor::from_vec(values, d, x.device())
    }
}
