//! The backward of [`GroupedLora::delta`](crate::GroupedLora::delta).
//!
//! With `y[t] += w[t] s (x[t] A_eᵀ) B_eᵀ` and `dz[t] = w[t] s (dy[t] B_e)`:
//!
//! `dx[t] += dz[t] A_e`, `dA_e = sum_t dz[t]ᵀ x[t]`, `dB_eᵀ = sum_t w[t] s (x[t] A_eᵀ)ᵀ dy[t]`

use crate::kernels::gemm::{Destination, MatrixMut, MatrixRef, gemm};
use crate::ops::grouped_op::{CHUNK, GroupedOp, Operands};
use crate::ops::sparse_gradients::SparseGradients;
use crate::ops::token_group::{GroupPart, TokenSlice};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;

/// What the backward of one part keeps for the gradients of A and B.
pub(crate) struct PartGradients {
    group: usize,
    /// `w s (x Aᵀ)`, `[tokens, ranks]`.
    z: Vec<f32>,
    /// `w s (dy B)`, `[tokens, ranks]`.
    dz: Vec<f32>,
    chunk: Range<usize>,
}

impl GroupedOp {
    /// Adds the gradient of `x` to `dx`, `[tokens, in]`, if given, from that of the outputs, `[tokens, out]`, and returns
    /// what [`GroupedOp::stack_gradients`] needs.
    pub(crate) fn input_gradient(&self, operands: &Operands, dy: &[f32], dx: Option<&mut [f32]>) -> Vec<PartGradients> {
        let parts: Vec<Vec<PartGradients>> = match dx {
            Some(dx) => dx
                .par_chunks_mut(CHUNK * operands.input)
                .enumerate()
                .map(|(i, dx)| self.backward_chunk(operands, dy, Some(dx), i * CHUNK))
                .collect(),
            None => (0..operands.tokens().div_ceil(CHUNK))
                .into_par_iter()
                .map(|i| self.backward_chunk(operands, dy, None, i * CHUNK))
                .collect(),
        };
        parts.into_iter().flatten().collect()
    }

    /// Backward of one chunk of tokens: adds to `dx`, and returns what the gradients of A and B need.
    fn backward_chunk(
        &self,
        operands: &Operands,
        dy: &[f32],
        mut dx: Option<&mut [f32]>,
        start: usize,
    ) -> Vec<PartGradients> {
        let chunk = start..(start + CHUNK).min(operands.tokens());
        let mut left = Vec::new();
        for (group, part) in
            self.groups.iter().enumerate().filter_map(|(g, group)| Some((g, GroupPart::of(group, &chunk)?)))
        {
            let count = part.tokens.len();
            let (z, ranks) = self.shrink(operands, &part);
            let dy = part.tokens.rows(dy, operands.output);
            let mut dz = vec![0.0; count * ranks.len()];
            for (index, block) in self.layout.0[part.expert].iter().enumerate() {
                let within = block.a.start - ranks.start;
                let b = operands.b_of((part.expert, index), block);
                let dy = MatrixRef::new(&dy[block.columns.start..], count, block.columns.len(), operands.output);
                let dz = MatrixMut::new(&mut dz[within..], count, block.a.len(), ranks.len());
                // Blocks with a tied A share columns of z and may differ in scale, so the scale is applied with dy.
                gemm(dz, Destination::Add, dy, b.transposed(), block.scale);
            }
            part.apply_weights(&mut dz, ranks.len());
            if let Some(dx) = dx.as_deref_mut() {
                self.add_input_gradient(operands, &part, &dz, dx);
            }
            left.push(PartGradients { group, z, dz, chunk: chunk.clone() });
        }
        left
    }

    /// `dx[t] += dz A_e`, where `dx` is that of the part's chunk.
    fn add_input_gradient(&self, operands: &Operands, part: &GroupPart, dz: &[f32], dx: &mut [f32]) {
        let ranks = self.layout.a_rows(part.expert);
        let (count, start) = (part.tokens.len(), part.chunk_start);
        let a = operands.factors.a(part.expert, &ranks, operands.input);
        let a = MatrixRef::new(a, ranks.len(), operands.input, operands.input);
        let dz = MatrixRef::new(dz, count, ranks.len(), ranks.len());
        match &part.tokens {
            TokenSlice::Contiguous(run) => {
                let dx = &mut dx[(run.start - start) * operands.input..];
                gemm(MatrixMut::new(dx, count, operands.input, operands.input), Destination::Add, dz, a, 1.0);
            }
            TokenSlice::Indices(tokens) => {
                let mut delta = vec![0.0; count * operands.input];
                gemm(
                    MatrixMut::new(&mut delta, count, operands.input, operands.input),
                    Destination::Overwrite,
                    dz,
                    a,
                    1.0,
                );
                for (&token, delta) in tokens.iter().zip(delta.chunks_exact(operands.input)) {
                    let dx = &mut dx[(token as usize - start) * operands.input..][..operands.input];
                    dx.iter_mut().zip(delta).for_each(|(dx, d)| *dx += d);
                }
            }
        }
    }

    /// The gradients of the stacked A and B. Each expert's rows are its own, and are summed over the parts in order, so that
    /// equal inputs give equal bytes on any number of threads.
    pub(crate) fn stack_gradients(
        &self,
        operands: &Operands,
        dy: &[f32],
        parts: &[PartGradients],
    ) -> [SparseGradients; 2] {
        let expert_of = |left: &PartGradients| self.groups[left.group].expert;
        let experts: Vec<usize> = parts.iter().map(expert_of).collect::<BTreeSet<_>>().into_iter().collect();
        let of_expert = |expert| parts.iter().filter(move |left| expert_of(left) == expert);
        let of_experts: Vec<[Vec<f32>; 2]> =
            experts.par_iter().map(|&expert| self.expert_gradients(operands, dy, expert, of_expert(expert))).collect();
        let mut gradients = <[SparseGradients; 2]>::default();
        for (expert, [a, b]) in experts.into_iter().zip(of_experts) {
            gradients[0].add(self.layout.a_rows(expert).start * operands.input, a);
            gradients[1].add(self.layout.b_rows(expert).start * operands.output, b);
        }
        gradients
    }

    /// The gradients of one expert's rows of A and B.
    fn expert_gradients<'p>(
        &self,
        operands: &Operands,
        dy: &[f32],
        expert: usize,
        parts: impl Iterator<Item = &'p PartGradients>,
    ) -> [Vec<f32>; 2] {
        let (ranks_a, ranks_b) = (self.layout.a_rows(expert), self.layout.b_rows(expert));
        let mut a = vec![0.0; ranks_a.len() * operands.input];
        let mut b = vec![0.0; ranks_b.len() * operands.output];
        for left in parts {
            let Some(part) = GroupPart::of(&self.groups[left.group], &left.chunk) else { continue };
            let count = part.tokens.len();
            let x = part.tokens.rows(operands.x, operands.input);
            let dy = part.tokens.rows(dy, operands.output);
            gemm(
                MatrixMut::new(&mut a, ranks_a.len(), operands.input, operands.input),
                Destination::Add,
                MatrixRef::new(&left.dz, count, ranks_a.len(), ranks_a.len()).transposed(),
                MatrixRef::new(&x, count, operands.input, operands.input),
                1.0,
            );
            for block in &self.layout.0[expert] {
                let start = (block.b.start - ranks_b.start) * operands.output + block.columns.start;
                gemm(
                    MatrixMut::new(&mut b[start..], block.b.len(), block.columns.len(), operands.output),
                    Destination::Add,
                    MatrixRef::new(&left.z[block.a.start - ranks_a.start..], count, block.a.len(), ranks_a.len())
                        .transposed(),
                    MatrixRef::new(&dy[block.columns.start..], count, block.columns.len(), operands.output),
                    block.scale,
                );
            }
        }
        [a, b]
    }
}
