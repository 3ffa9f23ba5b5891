//! A site's frozen weights with the adapters of a batch's sequences as one op, which holds neither a value nor a gradient
//! of anything between the frozen outputs and the adapters' deltas.
//!
//! `y[t] = W x[t] + b + s (m(x)[t] A_eᵀ) B_eᵀ`, with `e` the expert of the token's sequence and `m` a dropout mask.

use crate::frozen_linear::FrozenLinear;
use crate::kernels::op::{Input, Op};
use crate::ops::grouped_lora::GroupedLora;
use crate::ops::grouped_op::{GroupedOp, Operands};
use crate::ops::sparse_gradients::GradientSink;
use crate::ops::token_group::TokenGroup;
use candle_core::{Result, Shape, bail};
use rayon::prelude::*;
use std::sync::Arc;

/// A dropout mask: the input of low-rank products is scaled where a value is kept, and zero elsewhere.
pub struct DropoutMask {
    /// One for each kept value of `[tokens, in]`, zero for the others.
    pub kept: Vec<u8>,
    /// The factor of kept values.
    pub scale: f32,
}

impl DropoutMask {
    /// `values`, `[tokens, in]`, times the mask. A gradient passes through it the same way.
    ///
    /// # Errors
    /// If the number of values is not that of the mask.
    pub fn apply(&self, values: &[f32]) -> Result<Vec<f32>> {
        if values.len() != self.kept.len() {
            bail!("a dropout mask of {} values was given {}", self.kept.len(), values.len());
        }
        let pairs = values.par_iter().zip(&self.kept).with_min_len(SHARE);
        Ok(pairs.map(|(value, &kept)| value * (f32::from(kept) * self.scale)).collect())
    }
}

impl Op<1> for DropoutMask {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        Ok((self.apply(x.values)?, x.dims.into()))
    }

    fn backward(&self, _: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        Ok([Some(self.apply(dy)?)])
    }
}

/// A site's frozen weights with the adapters of a batch's sequences, an op of the site's input.
pub struct LoraLinear {
    grouped: GroupedLora,
    op: GroupedOp,
    frozen: Arc<dyn FrozenLinear>,
    mask: Option<DropoutMask>,
    sink: GradientSink,
}

impl LoraLinear {
    /// The site of `frozen` with the experts that `groups` give its tokens. Its backward leaves the gradients of A and B
    /// in `sink`.
    ///
    /// # Errors
    /// If the experts are not stacked, or their shapes are not those of the frozen weights.
    pub fn new(
        frozen: Arc<dyn FrozenLinear>,
        grouped: GroupedLora,
        groups: Arc<[TokenGroup]>,
        sink: GradientSink,
    ) -> Result<Self> {
        let (a, b) = grouped.stacked()?;
        let (of_a, of_b) = (a.dim(1)?, b.dim(1)?);
        if (frozen.input(), frozen.output()) != (of_a, of_b) {
            bail!("experts of {of_a} x {of_b} at a site of {} x {}", frozen.input(), frozen.output());
        }
        let op = grouped.op(groups);
        Ok(Self { grouped, op, frozen, mask: None, sink })
    }

    /// The same with a dropout mask on the experts' input.
    pub fn masked(self, mask: DropoutMask) -> Self {
        Self { mask: Some(mask), ..self }
    }

    /// Calls `work` with what the experts read of `x`.
    fn with_operands<T>(&self, x: Input, work: impl FnOnce(&Operands) -> Result<T>) -> Result<T> {
        let (input, output) = (self.frozen.input(), self.frozen.output());
        if x.matrix()?.1 != input {
            bail!("{NAME} reads {input} features and was given {}", x.matrix()?.1);
        }
        let masked = self.mask.as_ref().map(|mask| mask.apply(x.values)).transpose()?;
        let x = masked.as_deref().unwrap_or(x.values);
        self.grouped.with_factors(|factors| work(&Operands { x, factors, input, output }))
    }
}

impl Op<1> for LoraLinear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let y = self.with_operands(x, |operands| {
            let mut y = self.frozen.forward(x.values);
            self.op.accumulate(operands, &mut y);
            Ok(y)
        })?;
        Ok((y, (x.matrix()?.0, self.frozen.output()).into()))
    }

    /// Leaves the gradients of A and B in the sink, whether that of `x` is wanted or not.
    fn backward(&self, [x]: [Input; 1], dy: &[f32], [wanted]: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        self.with_operands(x, |operands| {
            let mut dx = wanted.then(|| self.frozen.backward(dy));
            let parts = match (&self.mask, &mut dx) {
                (Some(mask), Some(dx)) => {
                    let mut through_mask = vec![0.0; dx.len()];
                    let parts = self.op.input_gradient(operands, dy, Some(&mut through_mask));
                    let through_mask = mask.apply(&through_mask)?;
                    let pairs = dx.par_iter_mut().zip(&through_mask).with_min_len(SHARE);
                    pairs.for_each(|(dx, d)| *dx += d);
                    parts
                }
                (_, dx) => self.op.input_gradient(operands, dy, dx.as_deref_mut()),
            };
            self.sink.add(self.op.stack_gradients(operands, dy, &parts));
            Ok([dx])
        })
    }
}

const NAME: &str = "lora-linear";

/// Values worth a thread of their own.
const SHARE: usize = 1 << 15;
