//! The deltas of many experts over one packed batch.
//!
//! The experts of a site are stacked: their A's by rows in one `[ranks of A, in]`, their transposed B's by rows in one
//! `[ranks of B, out]`, where `out` counts the columns of all the site's projections. A batch has groups, each an expert
//! with its tokens `t` and their weights `w`:
//!
//! `delta[t] += w[t] * s * (x[t] A_eᵀ) B_eᵀ`
//!
//! A token costs its own experts, not the library, and no matrix per token is formed. The backward is in
//! `grouped_lora_backward`; training on a CPU goes through [`LoraLinear`](crate::LoraLinear), which adds the frozen weights.

use crate::kernels::cpu_tensor;
use crate::kernels::gemm::{Destination, MatrixMut, MatrixRef, gemm};
use crate::kernels::narrow_product::narrow_product;
use crate::kernels::op::{self, Input, Op};
use crate::kernels::vector_product::{add_weighted_rows, row_products};
use crate::ops::factor_source::FactorSource;
use crate::ops::sparse_gradients::SparseGradients;
use crate::ops::token_group::{GroupPart, TokenGroup, TokenSlice};
use crate::patch::{Addition, Outputs};
use crate::stack_layout::{StackBlock, StackLayout};
use candle_core::{CpuStorage, InplaceOp1, InplaceOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// The stacked experts of one site.
#[derive(Clone)]
pub struct GroupedLora {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) layout: Arc<StackLayout>,
}

impl GroupedLora {
    /// Stacked experts: `a` is `[ranks of A, in]`, `b` is `[ranks of B, out]`, both contiguous.
    ///
    /// # Errors
    /// If a block of `layout` is outside the matrices.
    pub fn new(a: Tensor, b: Tensor, layout: Arc<StackLayout>) -> Result<Self> {
        let (ranks_a, _) = a.dims2()?;
        let (ranks_b, out) = b.dims2()?;
        for block in layout.0.iter().flatten() {
            if block.a.end > ranks_a
                || block.b.end > ranks_b
                || block.columns.end > out
                || block.a.len() != block.b.len()
            {
                bail!("block {block:?} does not fit stacked matrices of {ranks_a} and {ranks_b} x {out}");
            }
        }
        Ok(Self { a, b, layout })
    }

    /// The stacked A's, `[ranks of A, in]`.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// The stacked, transposed B's, `[ranks of B, out]`.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// Where each expert is in the stacked matrices.
    pub fn layout(&self) -> &Arc<StackLayout> {
        &self.layout
    }

    /// The deltas of `groups` over `x`, `[tokens, in]`, as `[tokens, out]`; differentiable in `x`, A and B.
    pub fn delta(&self, x: &Tensor, groups: Arc<[TokenGroup]>) -> Result<Tensor> {
        if x.device().is_cpu() {
            op::ternary(self.op(groups), x, &self.a, &self.b)
        } else {
            self.composed_delta(x, &groups)
        }
    }

    /// Multiplies a single token with the A's of `groups`, and returns what adds their deltas to a site's outputs. Of more
    /// tokens, and where something is differentiated, all is left to [`GroupedLora::add`].
    pub fn begin<'a>(&'a self, x: &'a Tensor, groups: Arc<[TokenGroup]>) -> Result<Addition<'a>> {
        let tracked = [x, &self.a, &self.b].iter().any(|t| t.track_op());
        if tracked || !x.device().is_cpu() || x.dim(0)? != 1 {
            return Ok(Box::new(move |out| self.add(x, groups, out)));
        }
        let (op, input) = (self.op(groups), x.dim(1)?);
        if self.a.dim(1)? != input {
            bail!("{} reads {} features and was given {input}", op.name(), self.a.dim(1)?);
        }
        let shrunk = cpu_tensor::with_values(&x.contiguous()?, op.name(), |x| {
            cpu_tensor::with_values(&self.a, op.name(), |a| {
                op.shrink_token(&Operands { x, factors: FactorSource::Stacked { a, b: &[] }, input, output: 0 })
            })
        })??;
        let expand = ExpandToken { op, b: &self.b, shrunk };
        Ok(Box::new(move |out| out.add_in_place(|y| y.inplace_op1(&expand))))
    }

    /// Adds the deltas of `groups` to a site's outputs; in place where nothing is differentiated.
    pub fn add(&self, x: &Tensor, groups: Arc<[TokenGroup]>, out: &mut Outputs) -> Result<()> {
        let tracked = [x, &self.a, &self.b, out.tensor()].iter().any(|t| t.track_op());
        if tracked || !x.device().is_cpu() {
            return out.add(&self.delta(x, groups)?);
        }
        let op = GroupedInPlace { op: self.op(groups), b: self.b.clone() };
        let x = x.contiguous()?;
        out.add_in_place(|y| y.inplace_op3(&x, &self.a, &op))
    }

    pub(crate) fn op(&self, groups: Arc<[TokenGroup]>) -> GroupedOp {
        GroupedOp { layout: self.layout.clone(), groups }
    }
}

/// The deltas of groups as an op of `x`, A and B on a CPU.
pub(crate) struct GroupedOp {
    pub(crate) layout: Arc<StackLayout>,
    pub(crate) groups: Arc<[TokenGroup]>,
}

/// Tokens of one task of the thread pool. Gradients are summed chunk by chunk, so that they are the same on any number of
/// threads.
pub(crate) const CHUNK: usize = 64;

/// Of a batch of one token: parts whose products with A, and columns whose sums, one task of the thread pool makes.
const TOKEN_PARTS: usize = 4;
const TOKEN_COLUMNS: usize = 1024;

/// The values and dimensions of the inputs.
pub(crate) struct Operands<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) factors: FactorSource<'a>,
    pub(crate) input: usize,
    pub(crate) output: usize,
}

impl Operands<'_> {
    pub(crate) fn tokens(&self) -> usize {
        self.x.len() / self.input
    }

    /// The rows and columns of B that the block at `index` of an expert has.
    pub(crate) fn b_of(&self, (expert, index): (usize, usize), block: &StackBlock) -> MatrixRef<'_> {
        let (b, stride) = self.factors.b((expert, index), block, block.columns.start, self.output);
        MatrixRef::new(b, block.b.len(), block.columns.len(), stride)
    }
}

impl GroupedOp {
    fn operands<'a>(&self, [x, a, b]: [Input<'a>; 3]) -> Result<Operands<'a>> {
        let (input, output) = (x.matrix()?.1, b.matrix()?.1);
        if a.matrix()?.1 != input {
            bail!("{} reads {} features and was given {input}", self.name(), a.matrix()?.1);
        }
        let factors = FactorSource::Stacked { a: a.values, b: b.values };
        Ok(Operands { x: x.values, factors, input, output })
    }

    /// `w (x A_eᵀ)` of a part, `[tokens, ranks of the expert]`, not yet times the scale of each block, and the rows of A.
    pub(crate) fn shrink(&self, operands: &Operands, part: &GroupPart) -> (Vec<f32>, Range<usize>) {
        let ranks = self.layout.a_rows(part.expert);
        let x = part.tokens.rows(operands.x, operands.input);
        let mut z = vec![0.0; part.tokens.len() * ranks.len()];
        let a = operands.factors.a(part.expert, &ranks, operands.input);
        match operands.tokens() {
            1 => row_products(a, &x, &mut z),
            _ => narrow_product(&x, a, operands.input, &mut z),
        }
        part.apply_weights(&mut z, ranks.len());
        (z, ranks)
    }

    /// Adds the deltas of all groups to `y`, `[tokens, out]`.
    pub(crate) fn accumulate(&self, operands: &Operands, y: &mut [f32]) {
        if operands.tokens() == 1 {
            return self.expand_token(&self.shrink_token(operands), (operands.factors, operands.output), y);
        }
        y.par_chunks_mut(CHUNK * operands.output).enumerate().for_each(|(i, y)| {
            let start = i * CHUNK;
            let chunk = start..start + y.len() / operands.output;
            for part in self.groups.iter().filter_map(|group| GroupPart::of(group, &chunk)) {
                self.expand(operands, &part, y);
            }
        });
    }

    /// The parts of a batch of one token.
    fn token_parts(&self) -> Vec<GroupPart<'_>> {
        self.groups.iter().filter_map(|group| GroupPart::of(group, &(0..1))).collect()
    }

    /// [`GroupedOp::shrink`] of each part of a batch of one token. B is not read.
    pub(crate) fn shrink_token(&self, operands: &Operands) -> Vec<ShrunkPart> {
        let parts = self.token_parts();
        parts.par_iter().with_min_len(TOKEN_PARTS).map(|part| self.shrink(operands, part)).collect()
    }

    /// Adds the deltas of a batch of one token to `y`, `[out]`, which threads share by columns.
    pub(crate) fn expand_token(&self, shrunk: &[ShrunkPart], (factors, output): (FactorSource, usize), y: &mut [f32]) {
        let parts = self.token_parts();
        y.par_chunks_mut(TOKEN_COLUMNS).enumerate().for_each(|(i, y)| {
            let chunk = i * TOKEN_COLUMNS..i * TOKEN_COLUMNS + y.len();
            for (part, (z, ranks)) in parts.iter().zip(shrunk) {
                for (index, block) in self.layout.0[part.expert].iter().enumerate() {
                    let own = block.columns.start.max(chunk.start)..block.columns.end.min(chunk.end);
                    if own.is_empty() {
                        continue;
                    }
                    let z = &z[block.a.start - ranks.start..][..block.a.len()];
                    let (b, stride) = factors.b((part.expert, index), block, own.start, output);
                    let y = &mut y[own.start - chunk.start..own.end - chunk.start];
                    add_weighted_rows(y, b, stride, z, block.scale);
                }
            }
        });
    }

    /// Adds the delta of one part to `y`, the outputs of the part's chunk.
    fn expand(&self, operands: &Operands, part: &GroupPart, y: &mut [f32]) {
        let (z, ranks) = self.shrink(operands, part);
        let (count, start) = (part.tokens.len(), part.chunk_start);
        for (index, block) in self.layout.0[part.expert].iter().enumerate() {
            let z = MatrixRef::new(&z[block.a.start - ranks.start..], count, block.a.len(), ranks.len());
            let b = operands.b_of((part.expert, index), block);
            match &part.tokens {
                TokenSlice::Contiguous(run) => {
                    let y = &mut y[(run.start - start) * operands.output + block.columns.start..];
                    gemm(
                        MatrixMut::new(y, count, block.columns.len(), operands.output),
                        Destination::Add,
                        z,
                        b,
                        block.scale,
                    );
                }
                TokenSlice::Indices(tokens) => {
                    let width = block.columns.len();
                    let mut delta = vec![0.0; count * width];
                    gemm(MatrixMut::new(&mut delta, count, width, width), Destination::Overwrite, z, b, block.scale);
                    for (&token, delta) in tokens.iter().zip(delta.chunks_exact(width)) {
                        let y = &mut y[(token as usize - start) * operands.output + block.columns.start..][..width];
                        y.iter_mut().zip(delta).for_each(|(y, d)| *y += d);
                    }
                }
            }
        }
    }
}

/// A part's products with A, `[tokens, ranks of the expert]`, and the rows of A; see [`GroupedOp::shrink`].
pub(crate) type ShrunkPart = (Vec<f32>, Range<usize>);

/// Adds the deltas of a one-token batch, from its products with A, to a site's outputs in place.
struct ExpandToken<'a> {
    op: GroupedOp,
    b: &'a Tensor,
    shrunk: Vec<ShrunkPart>,
}

impl InplaceOp1 for ExpandToken<'_> {
    fn name(&self) -> &'static str {
        "grouped-lora-expand"
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (y, output) = (cpu_tensor::values_mut(y, layout, self.name())?, self.b.dim(1)?);
        if y.len() != output {
            bail!("{} makes {output} features of a token and was given {}", self.name(), y.len());
        }
        cpu_tensor::with_values(self.b, self.name(), |b| {
            self.op.expand_token(&self.shrunk, (FactorSource::Stacked { a: &[], b }, output), y);
        })
    }
}

impl Op<3> for GroupedOp {
    fn name(&self) -> &'static str {
        "grouped-lora"
    }

    fn forward(&self, inputs: [Input; 3]) -> Result<(Vec<f32>, Shape)> {
        let operands = self.operands(inputs)?;
        let tokens = operands.tokens();
        let mut y = vec![0.0; tokens * operands.output];
        self.accumulate(&operands, &mut y);
        Ok((y, (tokens, operands.output).into()))
    }

    fn backward(&self, inputs: [Input; 3], dy: &[f32], [of_x, of_a, of_b]: [bool; 3]) -> Result<[Option<Vec<f32>>; 3]> {
        let [_, a, b] = inputs;
        let operands = self.operands(inputs)?;
        let mut dx = of_x.then(|| vec![0.0; operands.x.len()]);
        let parts = self.input_gradient(&operands, dy, dx.as_deref_mut());
        if !of_a && !of_b {
            return Ok([dx, None, None]);
        }
        let [da, db] = self.stack_gradients(&operands, dy, &parts);
        let dense = |gradients: SparseGradients, of: &[f32]| gradients.dense(of.len());
        Ok([dx, of_a.then(|| dense(da, a.values)), of_b.then(|| dense(db, b.values))])
    }
}

/// The deltas added in place to a site's outputs, where nothing is differentiated.
struct GroupedInPlace {
    op: GroupedOp,
    b: Tensor,
}

impl InplaceOp3 for GroupedInPlace {
    fn name(&self) -> &'static str {
        "grouped-lora-in-place"
    }

    fn cpu_fwd(
        &self,
        y: &mut CpuStorage,
        ly: &Layout,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
    ) -> Result<()> {
        let input = |storage, layout: &'_ Layout| cpu_tensor::values(storage, layout, self.name());
        let (x, a) =
            (Input { values: input(x, lx)?, dims: lx.dims() }, Input { values: input(a, la)?, dims: la.dims() });
        let y = cpu_tensor::values_mut(y, ly, self.name())?;
        cpu_tensor::with_values(&self.b, self.name(), |b| {
            let operands = self.op.operands([x, a, Input { values: b, dims: self.b.dims() }])?;
            let expected = [operands.tokens(), operands.output];
            if ly.dims() != expected {
                bail!("{} makes {expected:?} outputs and was given {:?}", self.name(), ly.dims());
            }
            self.op.accumulate(&operands, y);
            Ok(())
        })?
    }
}
