//! The weighted sum of all experts' deltas at a site, where the weights are learned and A and B are frozen:
//!
//! `delta[t] = sum_e w_e s_e (x[t] A_eᵀ) B_eᵀ`
//!
//! The gradient of a weight is `s_e sum_t <x[t] A_eᵀ, dy[t] B_e>`, an inner product over ranks: nothing of the size of A, B
//! or a delta is formed.

use crate::kernels::cpu_tensor;
use crate::kernels::gemm::{Destination, MatrixMut, MatrixRef, gemm};
use crate::kernels::narrow_product::narrow_product;
use crate::kernels::op::{self, Input, Op};
use crate::ops::grouped_op::CHUNK;
use crate::stack_layout::StackLayout;
use candle_core::{Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// The stacked experts of one site, each with a weight to be learned.
#[derive(Clone)]
pub struct WeightedLora {
    a: Tensor,
    b: Tensor,
    slots: usize,
    spans: Arc<[Span]>,
}

/// All experts' blocks of one projection: as many rows of A as of B.
struct Span {
    a: Range<usize>,
    b: Range<usize>,
    columns: Range<usize>,
    /// For each rank the index of its weight, with the scale; none where no expert has the rank.
    weights: Vec<Option<(usize, f32)>>,
}

impl WeightedLora {
    /// Stacked experts: `a` is `[ranks of A, in]`, `b` is `[ranks of B, out]`, both contiguous; entry `i` of `layout`
    /// holds the blocks of weight `i`.
    ///
    /// # Errors
    /// If a block is outside the matrices, or the experts of a projection are in another order in A than in B.
    pub fn new(a: Tensor, b: Tensor, layout: &StackLayout) -> Result<Self> {
        let mut spans: Vec<Span> = Vec::new();
        for block in layout.0.iter().flatten() {
            match spans.iter_mut().find(|span| span.columns == block.columns) {
                None => spans.push(Span {
                    a: block.a.clone(),
                    b: block.b.clone(),
                    columns: block.columns.clone(),
                    weights: Vec::new(),
                }),
                Some(span) => {
                    span.a = span.a.start.min(block.a.start)..span.a.end.max(block.a.end);
                    span.b = span.b.start.min(block.b.start)..span.b.end.max(block.b.end);
                }
            }
        }
        let fits = |span: &Span, a: usize, (b, out): (usize, usize)| {
            span.a.end <= a && span.b.end <= b && span.columns.end <= out && span.a.len() == span.b.len()
        };
        for span in &mut spans {
            if !fits(span, a.dim(0)?, b.dims2()?) {
                bail!("experts at {:?} of A and {:?} of B do not fit {:?} and {:?}", span.a, span.b, a, b);
            }
            span.weights = vec![None; span.b.len()];
            for (slot, blocks) in layout.0.iter().enumerate() {
                for block in blocks.iter().filter(|block| block.columns == span.columns) {
                    if block.a.start - span.a.start != block.b.start - span.b.start {
                        bail!("block {block:?} is elsewhere in A than in B, relative to its projection");
                    }
                    span.weights[block.b.start - span.b.start..block.b.end - span.b.start]
                        .fill(Some((slot, block.scale)));
                }
            }
        }
        Ok(Self { a, b, slots: layout.0.len(), spans: spans.into() })
    }

    /// Number of weights.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The delta over `x`, `[tokens, in]`, with `weights`, `[slots]`, as `[tokens, out]`; differentiable in both.
    pub fn delta(&self, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            op::binary(WeightedOp(self.clone()), x, weights)
        } else {
            self.composed_delta(x, weights)
        }
    }

    /// The same as [`WeightedLora::delta`] on any device; the reference that tests compare with.
    pub fn composed_delta(&self, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
        let out = self.b.dim(1)?;
        let mut y = Tensor::zeros((x.dim(0)?, out), x.dtype(), x.device())?;
        for span in self.spans.iter() {
            let slots: Vec<u32> = span.weights.iter().map(|weight| weight.map_or(0, |(slot, _)| slot as u32)).collect();
            let scales: Vec<f32> = span.weights.iter().map(|weight| weight.map_or(0.0, |(_, scale)| scale)).collect();
            let factors = weights.index_select(&Tensor::new(slots, x.device())?, 0)?;
            let factors = (factors * Tensor::new(scales, x.device())?)?;
            let z = x.matmul(&self.a.narrow(0, span.a.start, span.a.len())?.t()?.contiguous()?)?;
            let b = self.b.narrow(0, span.b.start, span.b.len())?;
            let b = b.narrow(1, span.columns.start, span.columns.len())?.contiguous()?;
            let delta = z.broadcast_mul(&factors.unsqueeze(0)?)?.matmul(&b)?;
            y = (y + delta.pad_with_zeros(1, span.columns.start, out - span.columns.end)?)?;
        }
        Ok(y)
    }
}

/// The deltas as an op of `x` and the weights, on a CPU.
struct WeightedOp(WeightedLora);

/// The values and dimensions of the inputs.
struct WeightedOperands<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    input: usize,
    output: usize,
}

impl Span {
    /// The factor of each rank.
    fn factors(&self, weights: &[f32]) -> Vec<f32> {
        self.weights.iter().map(|weight| weight.map_or(0.0, |(slot, scale)| weights[slot] * scale)).collect()
    }

    /// `x Aᵀ`, `[tokens, ranks]`.
    fn shrink(&self, operands: &WeightedOperands, x: &[f32]) -> Vec<f32> {
        let (tokens, ranks) = (x.len() / operands.input, self.a.len());
        let mut z = vec![0.0; tokens * ranks];
        let a = &operands.a[self.a.start * operands.input..self.a.end * operands.input];
        narrow_product(x, a, operands.input, &mut z);
        z
    }

    /// The projection's B, `[ranks, width]`.
    fn b<'a>(&self, operands: &WeightedOperands<'a>) -> MatrixRef<'a> {
        let b = &operands.b[self.b.start * operands.output + self.columns.start..];
        MatrixRef::new(b, self.b.len(), self.columns.len(), operands.output)
    }
}

fn scale_columns(z: &mut [f32], factors: &[f32]) {
    for row in z.chunks_exact_mut(factors.len().max(1)) {
        row.iter_mut().zip(factors).for_each(|(z, factor)| *z *= factor);
    }
}

impl WeightedOp {
    /// Calls `run` with the values of all inputs.
    fn with_operands<T>(&self, [x, weights]: [Input; 2], run: impl FnOnce(&WeightedOperands) -> T) -> Result<T> {
        let (input, output) = (x.matrix()?.1, self.0.b.dim(1)?);
        if self.0.a.dim(1)? != input || *weights.dims != [self.0.slots] {
            bail!(
                "{} reads {} features under {} weights, and was given {input} and {:?}",
                self.name(),
                self.0.a.dim(1)?,
                self.0.slots,
                weights.dims
            );
        }
        let (x, weights) = (x.values, weights.values);
        cpu_tensor::with_values(&self.0.a, self.name(), |a| {
            cpu_tensor::with_values(&self.0.b, self.name(), |b| {
                run(&WeightedOperands { x, weights, a, b, input, output })
            })
        })?
    }

    fn delta(&self, operands: &WeightedOperands) -> Vec<f32> {
        let mut y = vec![0.0; operands.x.len() / operands.input * operands.output];
        y.par_chunks_mut(CHUNK * operands.output).zip(operands.x.par_chunks(CHUNK * operands.input)).for_each(
            |(y, x)| {
                for span in self.0.spans.iter() {
                    let mut z = span.shrink(operands, x);
                    scale_columns(&mut z, &span.factors(operands.weights));
                    let (tokens, ranks, width) = (x.len() / operands.input, span.a.len(), span.columns.len());
                    let z = MatrixRef::new(&z, tokens, ranks, ranks);
                    let y = MatrixMut::new(&mut y[span.columns.start..], tokens, width, operands.output);
                    gemm(y, Destination::Add, z, span.b(operands), 1.0);
                }
            },
        );
        y
    }

    /// The gradients of `x` and of the weights.
    fn gradients(&self, operands: &WeightedOperands, dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut dx = vec![0.0; operands.x.len()];
        let parts: Vec<Vec<f64>> = dx
            .par_chunks_mut(CHUNK * operands.input)
            .zip(operands.x.par_chunks(CHUNK * operands.input))
            .zip(dy.par_chunks(CHUNK * operands.output))
            .map(|((dx, x), dy)| self.backward_chunk(operands, x, dy, dx))
            .collect();
        // In order, so that equal inputs give equal bytes.
        let mut dw = vec![0.0f64; self.0.slots];
        parts.iter().for_each(|part| dw.iter_mut().zip(part).for_each(|(sum, part)| *sum += part));
        (dx, dw.into_iter().map(|gradient| gradient as f32).collect())
    }

    /// Backward of one chunk of tokens: fills `dx`, and returns its part of the weights' gradients.
    fn backward_chunk(&self, operands: &WeightedOperands, x: &[f32], dy: &[f32], dx: &mut [f32]) -> Vec<f64> {
        let mut dw = vec![0.0f64; self.0.slots];
        let tokens = x.len() / operands.input;
        for span in self.0.spans.iter() {
            let (ranks, width) = (span.a.len(), span.columns.len());
            let z = span.shrink(operands, x);
            let mut dz = vec![0.0; tokens * ranks];
            let dy = MatrixRef::new(&dy[span.columns.start..], tokens, width, operands.output);
            let b = span.b(operands).transposed();
            gemm(MatrixMut::new(&mut dz, tokens, ranks, ranks), Destination::Overwrite, dy, b, 1.0);
            for (z, dz) in z.chunks_exact(ranks).zip(dz.chunks_exact(ranks)) {
                for ((z, dz), weight) in z.iter().zip(dz).zip(&span.weights) {
                    if let Some((slot, scale)) = weight {
                        dw[*slot] += f64::from(*scale) * f64::from(*z) * f64::from(*dz);
                    }
                }
            }
            scale_columns(&mut dz, &span.factors(operands.weights));
            let a = MatrixRef::new(&operands.a[span.a.start * operands.input..], ranks, operands.input, operands.input);
            let dz = MatrixRef::new(&dz, tokens, ranks, ranks);
            gemm(MatrixMut::new(dx, tokens, operands.input, operands.input), Destination::Add, dz, a, 1.0);
        }
        dw
    }
}

impl Op<2> for WeightedOp {
    fn name(&self) -> &'static str {
        "weighted-lora"
    }

    fn forward(&self, inputs: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        let (y, output) = self.with_operands(inputs, |operands| (self.delta(operands), operands.output))?;
        Ok((y, (inputs[0].matrix()?.0, output).into()))
    }

    fn backward(&self, inputs: [Input; 2], dy: &[f32], [of_x, of_weights]: [bool; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        let (dx, dw) = self.with_operands(inputs, |operands| self.gradients(operands, dy))?;
        Ok([of_x.then_some(dx), of_weights.then_some(dw)])
    }
}
