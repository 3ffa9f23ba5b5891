//! The grouped low-rank product: the deltas of many experts over one packed batch.
//!
//! Experts of one site stand stacked: their A's by rows in one `[ranks of A, in]`, their B's, transposed, by rows
//! in one `[ranks of B, out]`, where `out` holds the columns of all the site's projections. With the groups of a
//! batch, each naming an expert, its tokens `t` and their weights `w`, the product is
//!
//! `delta[t] += w[t] * s * (x[t] A_eᵀ) B_eᵀ`
//!
//! which costs a token its chosen experts and not the library, and never forms a matrix per token.

use crate::cpu;
use crate::groups::{Group, Part, TokenSlice};
use crate::layouts::Layouts;
use crate::patch::Outputs;
use crate::product::{Destination, Threads, View, ViewMut, multiply};
use candle_core::{CpuStorage, CustomOp3, InplaceOp3, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// The stacked experts of one site.
#[derive(Clone)]
pub struct Grouped {
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    pub(crate) layouts: Arc<Layouts>,
}

impl Grouped {
    /// Stacked experts: `a` is `[ranks of A, in]`, `b` is `[ranks of B, out]`, both contiguous.
    pub fn new(a: Tensor, b: Tensor, layouts: Arc<Layouts>) -> Result<Self> {
        let (ranks_a, _) = a.dims2()?;
        let (ranks_b, out) = b.dims2()?;
        for block in layouts.0.iter().flatten() {
            if block.a.end > ranks_a
                || block.b.end > ranks_b
                || block.columns.end > out
                || block.a.len() != block.b.len()
            {
                bail!("a block {block:?} does not fit stacked matrices of {ranks_a} and {ranks_b} x {out}");
            }
        }
        Ok(Self { a, b, layouts })
    }

    /// The stacked A's, `[ranks of A, in]`.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// The stacked, transposed B's, `[ranks of B, out]`.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// Each expert's place in the stacked matrices.
    pub fn layouts(&self) -> &Arc<Layouts> {
        &self.layouts
    }

    /// The deltas of `groups` over `x`, `[tokens, in]`, as `[tokens, out]`; differentiable in `x`, A and B.
    pub fn delta(&self, x: &Tensor, groups: Arc<[Group]>) -> Result<Tensor> {
        if x.device().is_cpu() {
            let op = GroupedOp { layouts: self.layouts.clone(), groups };
            x.contiguous()?.apply_op3(&self.a, &self.b, op)
        } else {
            self.plain_delta(x, &groups)
        }
    }

    /// Adds the deltas of `groups` to a site's outputs; in place where nothing is differentiated.
    pub fn add(&self, x: &Tensor, groups: Arc<[Group]>, out: &mut Outputs) -> Result<()> {
        let tracked = [x, &self.a, &self.b, out.tensor()].iter().any(|t| t.track_op());
        if tracked || !x.device().is_cpu() {
            return out.add(&self.delta(x, groups)?);
        }
        let op = GroupedInPlace { op: GroupedOp { layouts: self.layouts.clone(), groups }, b: self.b.clone() };
        let x = x.contiguous()?;
        out.add_in_place(|y| y.inplace_op3(&x, &self.a, &op))
    }
}

/// The product as an op with its backward, on a CPU.
struct GroupedOp {
    layouts: Arc<Layouts>,
    groups: Arc<[Group]>,
}

/// Tokens that one task of the pool handles. Gradients are summed by such chunks, so that they are the same on any
/// number of threads.
const CHUNK: usize = 64;

/// The dimensions and values of one call.
struct Call<'a> {
    x: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    input: usize,
    output: usize,
}

/// What the backward of one part leaves for the gradients of A and B.
struct PartGradients {
    group: usize,
    /// `w s (x Aᵀ)`, `[tokens, ranks]`.
    z: Vec<f32>,
    /// `w s (dy B)`, `[tokens, ranks]`.
    dz: Vec<f32>,
    chunk: Range<usize>,
}

impl GroupedOp {
    fn call<'a>(
        &self,
        x: (&'a CpuStorage, &Layout),
        a: (&'a CpuStorage, &Layout),
        b: (&'a CpuStorage, &Layout),
    ) -> Result<Call<'a>> {
        let (_, input) = x.1.shape().dims2()?;
        let (_, output) = b.1.shape().dims2()?;
        if a.1.shape().dims2()?.1 != input {
            bail!("{} reads {} features and was given {input}", self.name(), a.1.shape().dims2()?.1);
        }
        let name = self.name();
        Ok(Call {
            x: cpu::values(x.0, x.1, name)?,
            a: cpu::values(a.0, a.1, name)?,
            b: cpu::values(b.0, b.1, name)?,
            input,
            output,
        })
    }

    /// `w (x A_eᵀ)` of a part, `[tokens, ranks of the expert]`; each block's scale is still to come.
    fn shrink(&self, call: &Call, part: &Part) -> (Vec<f32>, Range<usize>) {
        let ranks = self.layouts.ranks(part.expert);
        let x = part.tokens.rows(call.x, call.input);
        let mut z = vec![0.0; part.tokens.len() * ranks.len()];
        multiply(
            ViewMut::new(&mut z, part.tokens.len(), ranks.len(), ranks.len()),
            Destination::Overwrite,
            View::new(&x, part.tokens.len(), call.input, call.input),
            View::new(&call.a[ranks.start * call.input..], ranks.len(), call.input, call.input).transposed(),
            1.0,
            Threads::One,
        );
        part.weigh(&mut z, ranks.len());
        (z, ranks)
    }

    /// Adds the deltas of all groups to `y`, `[tokens, out]`.
    fn accumulate(&self, call: &Call, y: &mut [f32]) {
        y.par_chunks_mut(CHUNK * call.output).enumerate().for_each(|(i, y)| {
            let start = i * CHUNK;
            let chunk = start..start + y.len() / call.output;
            for part in self.groups.iter().filter_map(|group| Part::of(group, &chunk)) {
                self.expand(call, &part, y, start);
            }
        });
    }

    /// Adds the delta of one part to `y`, the outputs of the tokens from `start`.
    fn expand(&self, call: &Call, part: &Part, y: &mut [f32], start: usize) {
        let (z, ranks) = self.shrink(call, part);
        let count = part.tokens.len();
        for block in &self.layouts.0[part.expert] {
            let z = View::new(&z[block.a.start - ranks.start..], count, block.a.len(), ranks.len());
            let b = View::new(
                &call.b[block.b.start * call.output + block.columns.start..],
                block.b.len(),
                block.columns.len(),
                call.output,
            );
            match &part.tokens {
                TokenSlice::Run(run) => {
                    let y = &mut y[(run.start - start) * call.output + block.columns.start..];
                    multiply(
                        ViewMut::new(y, count, block.columns.len(), call.output),
                        Destination::Add,
                        z,
                        b,
                        block.scale,
                        Threads::One,
                    );
                }
                TokenSlice::Picked(tokens) => {
                    let width = block.columns.len();
                    let mut delta = vec![0.0; count * width];
                    multiply(
                        ViewMut::new(&mut delta, count, width, width),
                        Destination::Overwrite,
                        z,
                        b,
                        block.scale,
                        Threads::One,
                    );
                    for (&token, delta) in tokens.iter().zip(delta.chunks_exact(width)) {
                        let y = &mut y[(token as usize - start) * call.output + block.columns.start..][..width];
                        y.iter_mut().zip(delta).for_each(|(y, d)| *y += d);
                    }
                }
            }
        }
    }

    /// Backward of one chunk of tokens: adds to `dx`, and leaves what the gradients of A and B need.
    fn backward_chunk(&self, call: &Call, dy: &[f32], dx: &mut [f32], start: usize) -> Vec<PartGradients> {
        let chunk = start..start + dx.len() / call.input;
        let mut left = Vec::new();
        for (group, part) in self.groups.iter().enumerate().filter_map(|(g, group)| Some((g, Part::of(group, &chunk)?)))
        {
            let count = part.tokens.len();
            let (mut z, ranks) = self.shrink(call, &part);
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
                multiply(dz, Destination::Add, dy, b.transposed(), block.scale, Threads::One);
            }
            part.weigh(&mut dz, ranks.len());
            self.add_input_gradient(call, &part, &dz, dx, start);
            // Blocks with a tied A share columns of z and may differ in scale, so the scale is applied with dy.
            z.shrink_to_fit();
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
    fn weight_gradients(&self, call: &Call, dy: &[f32], parts: &[PartGradients]) -> (Vec<f32>, Vec<f32>) {
        let experts: Vec<usize> = (0..self.layouts.0.len()).collect();
        let of_expert = |expert: usize| parts.iter().filter(move |left| self.groups[left.group].expert == expert);
        let gradients: Vec<ExpertGradients> =
            experts.par_iter().map(|&expert| self.expert_gradients(call, dy, expert, of_expert(expert))).collect();
        let (mut da, mut db) = (vec![0.0; call.a.len()], vec![0.0; call.b.len()]);
        for gradients in gradients {
            let start = gradients.ranks_a.start * call.input;
            add(&mut da[start..start + gradients.a.len()], &gradients.a);
            let start = gradients.ranks_b.start * call.output;
            add(&mut db[start..start + gradients.b.len()], &gradients.b);
        }
        (da, db)
    }

    /// The gradients of one expert's rows of A and B.
    fn expert_gradients<'p>(
        &self,
        call: &Call,
        dy: &[f32],
        expert: usize,
        parts: impl Iterator<Item = &'p PartGradients>,
    ) -> ExpertGradients {
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
        ExpertGradients { ranks_a, ranks_b, a, b }
    }
}

/// The gradients of one expert's rows.
struct ExpertGradients {
    ranks_a: Range<usize>,
    ranks_b: Range<usize>,
    a: Vec<f32>,
    b: Vec<f32>,
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
}

impl CustomOp3 for GroupedOp {
    fn name(&self) -> &'static str {
        "grouped-low-rank"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let call = self.call((x, lx), (a, la), (b, lb))?;
        let tokens = call.x.len() / call.input;
        let mut y = vec![0.0; tokens * call.output];
        self.accumulate(&call, &mut y);
        cpu::result(y, (tokens, call.output))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (xs, lx) = x.storage_and_layout();
        let (a_s, la) = a.storage_and_layout();
        let (bs, lb) = b.storage_and_layout();
        let (ds, ld) = dy.storage_and_layout();
        use candle_core::Storage::Cpu;
        let (Cpu(xs), Cpu(a_s), Cpu(bs), Cpu(ds)) = (&*xs, &*a_s, &*bs, &*ds) else {
            bail!("{} has its backward on the CPU", self.name());
        };
        let call = self.call((xs, lx), (a_s, la), (bs, lb))?;
        let dy = cpu::values(ds, ld, self.name())?;
        let mut dx = vec![0.0; call.x.len()];
        let parts: Vec<Vec<PartGradients>> = dx
            .par_chunks_mut(CHUNK * call.input)
            .enumerate()
            .map(|(i, dx)| self.backward_chunk(&call, dy, dx, i * CHUNK))
            .collect();
        let parts: Vec<PartGradients> = parts.into_iter().flatten().collect();
        let (mut da, mut db) = (None, None);
        if a.track_op() || b.track_op() {
            let (a_values, b_values) = self.weight_gradients(&call, dy, &parts);
            da = Some(Tensor::from_vec(a_values, a.shape(), a.device())?);
            db = Some(Tensor::from_vec(b_values, b.shape(), b.device())?);
        }
        let dx = if x.track_op() { Some(Tensor::from_vec(dx, x.shape(), x.device())?) } else { None };
        Ok((dx, da.filter(|_| a.track_op()), db.filter(|_| b.track_op())))
    }
}

/// The product added in place to a site's outputs, where nothing is differentiated.
struct GroupedInPlace {
    op: GroupedOp,
    b: Tensor,
}

impl InplaceOp3 for GroupedInPlace {
    fn name(&self) -> &'static str {
        "grouped-low-rank-in-place"
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
        let (bs, lb) = self.b.storage_and_layout();
        let candle_core::Storage::Cpu(bs) = &*bs else {
            bail!("{} was given experts that are not on the CPU", self.name());
        };
        let call = self.op.call((x, lx), (a, la), (bs, lb))?;
        self.op.accumulate(&call, cpu::values_mut(y, ly, self.name())?);
        Ok(())
    }
}
