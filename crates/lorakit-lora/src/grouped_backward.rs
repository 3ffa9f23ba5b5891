//! The backward of the grouped low-rank product.
//!
//! With `y[t] += w[t] s (x[t] A_eᵀ) B_eᵀ` and `dz[t] = w[t] s (dy[t] B_e)`:
//!
//! `dx[t] += dz[t] A_e`, `dA_e = sum_t dz[t]ᵀ x[t]`, `dB_eᵀ = sum_t w[t] s (x[t] A_eᵀ)ᵀ dy[t]`

use crate::grouped::{CHUNK, Call, GroupedOp};
use crate::groups::{Part, TokenSlice};
use crate::product::{Destination, Threads, View, ViewMut, multiply};
use crate::row_gradients::RowGradients;
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::ops::Range;

/// What the backward of one part leaves for the gradients of A and B.
pub(crate) struct PartGradients {
    group: usize,
    /// `w s (x Aᵀ)`, `[tokens, ranks]`.
    z: Vec<f32>,
    /// `w s (dy B)`, `[tokens, ranks]`.
    dz: Vec<f32>,
    chunk: Range<usize>,
}

impl GroupedOp {
    /// Adds the gradient of `x` to `dx`, `[tokens, in]`, where it is asked for, from that of the outputs, `[tokens, out]`,
    /// and leaves what [`GroupedOp::row_gradients`] needs.
    pub(crate) fn input_gradient(&self, call: &Call, dy: &[f32], dx: Option<&mut [f32]>) -> Vec<PartGradients> {
        let parts: Vec<Vec<PartGradients>> = match dx {
            Some(dx) => dx
                .par_chunks_mut(CHUNK * call.input)
                .enumerate()
                .map(|(i, dx)| self.backward_chunk(call, dy, Some(dx), i * CHUNK))
                .collect(),
            None => (0..call.tokens().div_ceil(CHUNK))
                .into_par_iter()
                .map(|i| self.backward_chunk(call, dy, None, i * CHUNK))
                .collect(),
        };
        parts.into_iter().flatten().collect()
    }

    /// Backward of one chunk of tokens: adds to `dx`, and leaves what the gradients of A and B need.
    fn backward_chunk(&self, call: &Call, dy: &[f32], mut dx: Option<&mut [f32]>, start: usize) -> Vec<PartGradients> {
        let chunk = start..(start + CHUNK).min(call.tokens());
        let mut left = Vec::new();
        for (group, part) in self.groups.iter().enumerate().filter_map(|(g, group)| Some((g, Part::of(group, &chunk)?)))
        {
            let count = part.tokens.len();
            let (z, ranks) = self.shrink(call, &part);
            let dy = part.tokens.rows(dy, call.output);
            let mut dz = vec![0.0; count * ranks.len()];
            for block in &self.layouts.0[part.expert] {
                let within = block.a.start - ranks.start;
                let b = View::new(
                    &call.b[block.b.start * call.output + block.columns.start..],
                    block.b.len(),
                    block.columns.len(),
                    call.output,
                );
                let dy = View::new(&dy[block.columns.start..], count, block.columns.len(), call.output);
                let dz = ViewMut::new(&mut dz[within..], count, block.a.len(), ranks.len());
                // Blocks with a tied A share columns of z and may differ in scale, so the scale is applied with dy.
                multiply(dz, Destination::Add, dy, b.transposed(), block.scale, Threads::One);
            }
            part.weigh(&mut dz, ranks.len());
            if let Some(dx) = dx.as_deref_mut() {
                self.add_input_gradient(call, &part, &dz, dx, start);
            }
            left.push(PartGradients { group, z, dz, chunk: chunk.clone() });
        }
        left
    }

    /// `dx[t] += dz A_e`.
    fn add_input_gradient(&self, call: &Call, part: &Part, dz: &[f32], dx: &mut [f32], start: usize) {
        let ranks = self.layouts.ranks(part.expert);
        let count = part.tokens.len();
        let a = View::new(&call.a[ranks.start * call.input..], ranks.len(), call.input, call.input);
        let dz = View::new(dz, count, ranks.len(), ranks.len());
        match &part.tokens {
            TokenSlice::Run(run) => {
                let dx = &mut dx[(run.start - start) * call.input..];
                multiply(ViewMut::new(dx, count, call.input, call.input), Destination::Add, dz, a, 1.0, Threads::One);
            }
            TokenSlice::Picked(tokens) => {
                let mut delta = vec![0.0; count * call.input];
                multiply(
                    ViewMut::new(&mut delta, count, call.input, call.input),
                    Destination::Overwrite,
                    dz,
                    a,
                    1.0,
                    Threads::One,
                );
                for (&token, delta) in tokens.iter().zip(delta.chunks_exact(call.input)) {
                    let dx = &mut dx[(token as usize - start) * call.input..][..call.input];
                    dx.iter_mut().zip(delta).for_each(|(dx, d)| *dx += d);
                }
            }
        }
    }

    /// The gradients of the stacked A and B. Each expert's rows are its own and are added up over the parts in order,
    /// so that equal inputs give equal bytes on any number of threads.
    pub(crate) fn row_gradients(&self, call: &Call, dy: &[f32], parts: &[PartGradients]) -> [RowGradients; 2] {
        let expert_of = |left: &PartGradients| self.groups[left.group].expert;
        let experts: Vec<usize> = parts.iter().map(expert_of).collect::<BTreeSet<_>>().into_iter().collect();
        let of_expert = |expert| parts.iter().filter(move |left| expert_of(left) == expert);
        let of_experts: Vec<[Vec<f32>; 2]> =
            experts.par_iter().map(|&expert| self.expert_gradients(call, dy, expert, of_expert(expert))).collect();
        let mut gradients = <[RowGradients; 2]>::default();
        for (expert, [a, b]) in experts.into_iter().zip(of_experts) {
            gradients[0].add(self.layouts.ranks(expert).start * call.input, a);
            gradients[1].add(self.layouts.ranks_b(expert).start * call.output, b);
        }
        gradients
    }

    /// The gradients of one expert's rows of A and B.
    fn expert_gradients<'p>(
        &self,
        call: &Call,
        dy: &[f32],
        expert: usize,
        parts: impl Iterator<Item = &'p PartGradients>,
    ) -> [Vec<f32>; 2] {
        let (ranks_a, ranks_b) = (self.layouts.ranks(expert), self.layouts.ranks_b(expert));
        let mut a = vec![0.0; ranks_a.len() * call.input];
        let mut b = vec![0.0; ranks_b.len() * call.output];
        for left in parts {
            let Some(part) = Part::of(&self.groups[left.group], &left.chunk) else { continue };
            let count = part.tokens.len();
            let x = part.tokens.rows(call.x, call.input);
            let dy = part.tokens.rows(dy, call.output);
            multiply(
                ViewMut::new(&mut a, ranks_a.len(), call.input, call.input),
                Destination::Add,
                View::new(&left.dz, count, ranks_a.len(), ranks_a.len()).transposed(),
                View::new(&x, count, call.input, call.input),
                1.0,
                Threads::One,
            );
            for block in &self.layouts.0[expert] {
                let start = (block.b.start - ranks_b.start) * call.output + block.columns.start;
                multiply(
                    ViewMut::new(&mut b[start..], block.b.len(), block.columns.len(), call.output),
                    Destination::Add,
                    View::new(&left.z[block.a.start - ranks_a.start..], count, block.a.len(), ranks_a.len())
                        .transposed(),
                    View::new(&dy[block.columns.start..], count, block.columns.len(), call.output),
                    block.scale,
                    Threads::One,
                );
            }
        }
        [a, b]
    }
}
