//! The kernels of [`GroupedLora`](crate::GroupedLora): products with the factors of each group's expert, forward and as an
//! op of `x`, A and B.

use crate::kernels::gemm::{Destination, MatrixMut, MatrixRef, gemm};
use crate::kernels::narrow_product::narrow_product;
use crate::kernels::op::{Input, Op};
use crate::kernels::vector_product::{add_weighted_rows, row_products};
use crate::ops::factor_source::FactorSource;
use crate::ops::sparse_gradients::SparseGradients;
use crate::ops::token_group::{GroupPart, TokenGroup, TokenSlice};
use crate::stack_layout::{StackBlock, StackLayout};
use candle_core::{Result, Shape, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// The name of the ops in errors.
pub(crate) const NAME: &str = "grouped-lora";

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

    /// The deltas of all groups, `[tokens, out]`.
    pub(crate) fn deltas(&self, operands: &Operands) -> (Vec<f32>, Shape) {
        let tokens = operands.tokens();
        let mut y = vec![0.0; tokens * operands.output];
        self.accumulate(operands, &mut y);
        (y, (tokens, operands.output).into())
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

impl Op<3> for GroupedOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, inputs: [Input; 3]) -> Result<(Vec<f32>, Shape)> {
        Ok(self.deltas(&self.operands(inputs)?))
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
