//! The deltas of many experts over one packed batch.
//!
//! A batch has groups, each an expert with its tokens `t` and their weights `w`:
//!
//! `delta[t] += w[t] * s * (x[t] A_eᵀ) B_eᵀ`
//!
//! A token costs its own experts, not the library, and no matrix per token is formed. The kernels are in `grouped_op`, their
//! backward in `grouped_lora_backward`; training on a CPU goes through [`LoraLinear`](crate::LoraLinear), which adds the
//! frozen weights.
//!
//! The experts of a site are either stacked, their A's by rows in one `[ranks of A, in]` and their transposed B's by rows in
//! one `[ranks of B, out]`, where `out` counts the columns of all the site's projections; or each is in its own matrices. Of
//! a large library, tokens choose few experts: their A's are then read where they lie, and their B's are transposed when
//! they are first chosen. Both forms give the same bits.

use crate::factor_rows::ExpertFactors;
use crate::kernels::cpu_tensor;
use crate::kernels::op::{self, Input, Op};
use crate::ops::factor_source::FactorSource;
use crate::ops::grouped_op::{GroupedOp, NAME, Operands, ShrunkPart};
use crate::ops::token_group::TokenGroup;
use crate::patch::{Addition, Outputs};
use crate::stack_layout::{StackBlock, StackLayout};
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// The experts of one site.
#[derive(Clone)]
pub struct GroupedLora {
    factors: Factors,
    pub(crate) layout: Arc<StackLayout>,
    input: usize,
    output: usize,
}

/// The matrices that the blocks of a layout are ranges of.
#[derive(Clone)]
enum Factors {
    Stacked { a: Tensor, b: Tensor },
    Unstacked(Arc<[Vec<ExpertFactors>]>),
}

impl GroupedLora {
    /// Stacked experts: `a` is `[ranks of A, in]`, `b` is `[ranks of B, out]`, both contiguous.
    ///
    /// # Errors
    /// If a block of `layout` is outside the matrices.
    pub fn new(a: Tensor, b: Tensor, layout: Arc<StackLayout>) -> Result<Self> {
        let (ranks_a, input) = a.dims2()?;
        let (ranks_b, output) = b.dims2()?;
        for block in layout.0.iter().flatten() {
            if block.a.end > ranks_a
                || block.b.end > ranks_b
                || block.columns.end > output
                || block.a.len() != block.b.len()
            {
                bail!("block {block:?} does not fit stacked matrices of {ranks_a} and {ranks_b} x {output}");
            }
        }
        Ok(Self { factors: Factors::Stacked { a, b }, layout, input, output })
    }

    /// Each expert's own factors at a site of `input` and `output` features, one for each projection that it adapts; their
    /// A's are rows of one matrix. They work on a CPU, and are constants.
    ///
    /// # Errors
    /// If factors do not fit each other or the site, or an expert's A's are of several matrices.
    pub fn unstacked(experts: Vec<Vec<ExpertFactors>>, input: usize, output: usize) -> Result<Self> {
        for factors in experts.iter().flatten() {
            let (a, b, columns) = (factors.a.matrix(), factors.b.matrix(), &factors.columns);
            let fits = a.cols() == input && factors.rows.end <= a.rows() && columns.end <= output;
            if !fits || factors.rank() * columns.len() != b.rows() * b.cols() {
                bail!("{factors:?} does not fit a site of {input} x {output}");
            }
        }
        if experts.iter().any(|own| own.iter().any(|factors| !Arc::ptr_eq(&factors.a, &own[0].a))) {
            bail!("the A's of an expert are of several matrices; expected one");
        }
        let block = |factors: &ExpertFactors| {
            let (a, b, columns) = (factors.rows.clone(), 0..factors.rank(), factors.columns.clone());
            StackBlock { a, b, columns, scale: factors.scale }
        };
        let layout = StackLayout(experts.iter().map(|own| own.iter().map(block).collect()).collect());
        Ok(Self { factors: Factors::Unstacked(experts.into()), layout: Arc::new(layout), input, output })
    }

    /// The stacked A's, `[ranks of A, in]`, and the stacked, transposed B's, `[ranks of B, out]`.
    ///
    /// # Errors
    /// If each expert is in its own matrices.
    pub fn stacked(&self) -> Result<(&Tensor, &Tensor)> {
        match &self.factors {
            Factors::Stacked { a, b } => Ok((a, b)),
            Factors::Unstacked(_) => bail!("expected stacked experts, and each is in its own matrices"),
        }
    }

    /// The deltas of `groups` over `x`, `[tokens, in]`, as `[tokens, out]`; differentiable in `x`, and in stacked A and B.
    pub fn delta(&self, x: &Tensor, groups: Arc<[TokenGroup]>) -> Result<Tensor> {
        match &self.factors {
            _ if !x.device().is_cpu() => self.composed_delta(x, &groups),
            Factors::Stacked { a, b } => op::ternary(self.op(groups), x, a, b),
            Factors::Unstacked(_) => op::unary(self.input_op(groups), x),
        }
    }

    /// Multiplies a single token with the A's of `groups`, and returns what adds their deltas to a site's outputs. Of more
    /// tokens, and where something is differentiated, all is left to [`GroupedLora::add`].
    pub fn begin<'a>(&'a self, x: &'a Tensor, groups: Arc<[TokenGroup]>) -> Result<Addition<'a>> {
        if self.tracks(x) || !x.device().is_cpu() || x.dim(0)? != 1 {
            return Ok(Box::new(move |out| self.add(x, groups, out)));
        }
        let op = self.op(groups);
        let shrunk = cpu_tensor::with_values(&x.contiguous()?, NAME, |values| {
            self.with_operands(Input { values, dims: x.dims() }, |operands| Ok(op.shrink_token(operands)))
        })??;
        Ok(Box::new(move |out| out.add_in_place(|y| y.inplace_op1(&ExpandToken { lora: self, op, shrunk }))))
    }

    /// Adds the deltas of `groups` to a site's outputs; in place where nothing is differentiated.
    pub fn add(&self, x: &Tensor, groups: Arc<[TokenGroup]>, out: &mut Outputs) -> Result<()> {
        if self.tracks(x) || out.tensor().track_op() || !x.device().is_cpu() {
            return out.add(&self.delta(x, groups)?);
        }
        let (x, op) = (x.contiguous()?, self.input_op(groups));
        out.add_in_place(|y| y.inplace_op2(&x, &op))
    }

    /// Whether `x` or a factor is differentiated.
    fn tracks(&self, x: &Tensor) -> bool {
        let factors = match &self.factors {
            Factors::Stacked { a, b } => a.track_op() || b.track_op(),
            Factors::Unstacked(_) => false,
        };
        factors || x.track_op()
    }

    pub(crate) fn op(&self, groups: Arc<[TokenGroup]>) -> GroupedOp {
        GroupedOp { layout: self.layout.clone(), groups }
    }

    fn input_op(&self, groups: Arc<[TokenGroup]>) -> InputOp {
        InputOp { lora: self.clone(), op: self.op(groups) }
    }

    /// Calls `read` with the values of the factors, on a CPU.
    pub(crate) fn with_factors<T>(&self, read: impl FnOnce(FactorSource) -> Result<T>) -> Result<T> {
        match &self.factors {
            Factors::Stacked { a, b } => cpu_tensor::with_values(a, NAME, |a| {
                cpu_tensor::with_values(b, NAME, |b| read(FactorSource::Stacked { a, b }))?
            })?,
            Factors::Unstacked(experts) => read(FactorSource::Unstacked(experts)),
        }
    }

    /// Calls `read` with what a product of `x` reads.
    fn with_operands<T>(&self, x: Input, read: impl FnOnce(&Operands) -> Result<T>) -> Result<T> {
        let &Self { input, output, .. } = self;
        if x.matrix()?.1 != input {
            bail!("{NAME} reads {input} features and was given {}", x.matrix()?.1);
        }
        self.with_factors(|factors| read(&Operands { x: x.values, factors, input, output }))
    }
}

/// The deltas of groups as an op of `x` alone, or added in place to a site's outputs.
struct InputOp {
    lora: GroupedLora,
    op: GroupedOp,
}

impl Op<1> for InputOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        self.lora.with_operands(x, |operands| Ok(self.op.deltas(operands)))
    }

    fn backward(&self, [x]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        let mut dx = vec![0.0; x.values.len()];
        self.lora.with_operands(x, |operands| {
            self.op.input_gradient(operands, dy, Some(&mut dx));
            Ok(())
        })?;
        Ok([Some(dx)])
    }
}

impl InplaceOp2 for InputOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, ly: &Layout, x: &CpuStorage, lx: &Layout) -> Result<()> {
        let x = Input { values: cpu_tensor::values(x, lx, NAME)?, dims: lx.dims() };
        self.lora.with_operands(x, |operands| {
            ensure_outputs(ly, operands.tokens(), operands.output)?;
            self.op.accumulate(operands, cpu_tensor::values_mut(y, ly, NAME)?);
            Ok(())
        })
    }
}

/// Adds the deltas of a one-token batch, from its products with A, to a site's outputs in place.
struct ExpandToken<'a> {
    lora: &'a GroupedLora,
    op: GroupedOp,
    shrunk: Vec<ShrunkPart>,
}

impl InplaceOp1 for ExpandToken<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, layout: &Layout) -> Result<()> {
        ensure_outputs(layout, 1, self.lora.output)?;
        let y = cpu_tensor::values_mut(y, layout, NAME)?;
        self.lora.with_factors(|factors| {
            self.op.expand_token(&self.shrunk, (factors, self.lora.output), y);
            Ok(())
        })
    }
}

fn ensure_outputs(y: &Layout, tokens: usize, output: usize) -> Result<()> {
    let expected = [tokens, output];
    if y.dims() != expected {
        bail!("{NAME} makes {expected:?} outputs and was given {:?}", y.dims());
    }
    Ok(())
}
