//! A site with the experts of a batch's rows as one function and its backward: of all that is between its frozen outputs
//! and their deltas, neither a value nor a gradient is held.
//!
//! `y[t] = W x[t] + b + s (m(x)[t] A_eᵀ) B_eᵀ`, with `e` the expert of the token's row and `m` a mask, as dropout's.

use crate::cpu;
use crate::grouped::{Call, Grouped, GroupedOp};
use crate::groups::Group;
use crate::row_gradients::Collector;
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// The frozen linears of a site on a CPU, their outputs side by side.
pub trait Frozen: Send + Sync {
    /// Number of inputs.
    fn input(&self) -> usize;

    /// Number of outputs.
    fn output(&self) -> usize;

    /// `x`, `[tokens, in]`, through the linears: `[tokens, out]`.
    fn forward(&self, x: &[f32]) -> Vec<f32>;

    /// The gradient of `x`, `[tokens, in]`, from that of the outputs, `[tokens, out]`.
    fn backward(&self, dy: &[f32]) -> Vec<f32>;
}

/// What the input of low-rank products is multiplied by, value for value: the same scale where a value is kept, else
/// zero.
pub struct Mask {
    /// One where a value of `[tokens, in]` is kept, else zero.
    pub kept: Vec<u8>,
    /// The scale of those.
    pub scale: f32,
}

impl Mask {
    /// The product with `values`, `[tokens, in]`. A gradient passes through it as the values do.
    ///
    /// # Errors
    /// Where there are more values than the mask has, or fewer.
    pub fn applied(&self, values: &[f32]) -> Result<Vec<f32>> {
        if values.len() != self.kept.len() {
            bail!("a mask of {} values was given {}", self.kept.len(), values.len());
        }
        let pairs = values.par_iter().zip(&self.kept).with_min_len(SHARE);
        Ok(pairs.map(|(value, &kept)| value * (f32::from(kept) * self.scale)).collect())
    }
}

/// A site's frozen weights with the experts of a batch's rows.
pub struct AdaptedSite {
    grouped: Grouped,
    op: GroupedOp,
    frozen: Arc<dyn Frozen>,
    mask: Option<Mask>,
    collector: Collector,
}

impl AdaptedSite {
    /// The site of `frozen` with the experts that `groups` give its tokens; the gradients of A and B are left in
    /// `collector`.
    pub fn new(frozen: Arc<dyn Frozen>, grouped: Grouped, groups: Arc<[Group]>, collector: Collector) -> Result<Self> {
        let (of_a, of_b) = (grouped.a().dim(1)?, grouped.b().dim(1)?);
        if (frozen.input(), frozen.output()) != (of_a, of_b) {
            bail!("experts of {of_a} x {of_b} over a site of {} x {}", frozen.input(), frozen.output());
        }
        let op = grouped.op(groups);
        Ok(Self { grouped, op, frozen, mask: None, collector })
    }

    /// The same, where the experts read the input through a mask.
    pub fn masked(self, mask: Mask) -> Self {
        Self { mask: Some(mask), ..self }
    }

    /// The outputs over `x`, `[tokens, in]`: `[tokens, out]`, outside candle's graph.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous()?;
        let y = self.with_call(&x, |x, call| {
            let mut y = self.frozen.forward(x);
            self.op.accumulate(call, &mut y);
            Ok(y)
        })?;
        Tensor::from_vec(y, (x.dim(0)?, self.frozen.output()), x.device())
    }

    /// Leaves the gradients of A and B in the collector, and returns that of `x` where it is asked for, from that of the
    /// outputs, `[tokens, out]`.
    pub fn backward(&self, x: &Tensor, dy: &Tensor, of_x: bool) -> Result<Option<Tensor>> {
        let (x, dy) = (x.contiguous()?, dy.contiguous()?);
        let dx = self.with_call(&x, |_, call| {
            cpu::with_values(&dy, NAME, |dy| {
                let mut dx = of_x.then(|| self.frozen.backward(dy));
                let parts = match (&self.mask, &mut dx) {
                    (Some(mask), Some(dx)) => {
                        let mut through_mask = vec![0.0; dx.len()];
                        let parts = self.op.input_gradient(call, dy, Some(&mut through_mask));
                        let through_mask = mask.applied(&through_mask)?;
                        let pairs = dx.par_iter_mut().zip(&through_mask).with_min_len(SHARE);
                        pairs.for_each(|(dx, d)| *dx += d);
                        parts
                    }
                    (_, dx) => self.op.input_gradient(call, dy, dx.as_deref_mut()),
                };
                self.collector.add(self.op.row_gradients(call, dy, &parts));
                Ok(dx)
            })?
        })?;
        dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()
    }

    /// Calls `work` with the values of `x` and with what the experts read of them.
    fn with_call<T>(&self, x: &Tensor, work: impl FnOnce(&[f32], &Call) -> Result<T>) -> Result<T> {
        let (input, output) = (self.frozen.input(), self.frozen.output());
        if x.dim(1)? != input {
            bail!("{NAME} reads {input} features and was given {}", x.dim(1)?);
        }
        let (a, b) = (self.grouped.a(), self.grouped.b());
        cpu::with_values(x, NAME, |x| {
            let masked = self.mask.as_ref().map(|mask| mask.applied(x)).transpose()?;
            cpu::with_values(a, NAME, |a| {
                cpu::with_values(b, NAME, |b| work(x, &Call { x: masked.as_deref().unwrap_or(x), a, b, input, output }))
            })??
        })?
    }
}

const NAME: &str = "adapted-site";

/// Values that are worth a thread of their own.
const SHARE: usize = 1 << 15;
