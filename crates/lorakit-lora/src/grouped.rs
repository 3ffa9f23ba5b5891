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
use crate::row_gradients::RowGradients;
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
            x.contiguous()?.apply_op3(&self.a, &self.b, self.op(groups))
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
        let op = GroupedInPlace { op: self.op(groups), b: self.b.clone() };
        let x = x.contiguous()?;
        out.add_in_place(|y| y.inplace_op3(&x, &self.a, &op))
    }

    pub(crate) fn op(&self, groups: Arc<[Group]>) -> GroupedOp {
        GroupedOp { layouts: self.layouts.clone(), groups }
    }
}

/// The product as an op with its backward, on a CPU.
pub(crate) struct GroupedOp {
    pub(crate) layouts: Arc<Layouts>,
    pub(crate) groups: Arc<[Group]>,
}

/// Tokens that one task of the pool handles. Gradients are summed by such chunks, so that they are the same on any
/// number of threads.
pub(crate) const CHUNK: usize = 64;

/// The dimensions and values of one call.
pub(crate) struct Call<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) a: &'a [f32],
    pub(crate) b: &'a [f32],
    pub(crate) input: usize,
    pub(crate) output: usize,
}

impl Call<'_> {
    pub(crate) fn tokens(&self) -> usize {
        self.x.len() / self.input
    }
}

impl GroupedOp {
    pub(crate) fn call<'a>(
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
    pub(crate) fn shrink(&self, call: &Call, part: &Part) -> (Vec<f32>, Range<usize>) {
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
    pub(crate) fn accumulate(&self, call: &Call, y: &mut [f32]) {
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
        let tokens = call.tokens();
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
        let mut dx = x.track_op().then(|| vec![0.0; call.x.len()]);
        let parts = self.input_gradient(&call, dy, dx.as_deref_mut());
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        if !a.track_op() && !b.track_op() {
            return Ok((dx, None, None));
        }
        let [da, db] = self.row_gradients(&call, dy, &parts);
        let dense = |of: &Tensor, rows: RowGradients| -> Result<Option<Tensor>> {
            if !of.track_op() {
                return Ok(None);
            }
            Tensor::from_vec(rows.dense(of.elem_count()), of.shape(), of.device()).map(Some)
        };
        Ok((dx, dense(a, da)?, dense(b, db)?))
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
