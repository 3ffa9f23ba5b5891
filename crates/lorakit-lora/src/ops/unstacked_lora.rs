//! The deltas of many experts over one packed batch, as of [`GroupedLora`](crate::GroupedLora), of experts whose matrices
//! are not copied together.
//!
//! Of a large library, tokens choose few experts: their A's are read where they lie, and their B's are transposed when
//! they are first chosen. Sums are made by the same kernels in the same order. It runs on a CPU, and is differentiable in
//! the site's input alone.

use crate::factor_rows::ExpertFactors;
use crate::kernels::cpu_tensor;
use crate::kernels::op::{self, Input, Op};
use crate::ops::factor_source::FactorSource;
use crate::ops::grouped_lora::{GroupedOp, Operands, ShrunkPart};
use crate::ops::token_group::TokenGroup;
use crate::patch::{Addition, Outputs};
use crate::stack_layout::{StackBlock, StackLayout};
use candle_core::{CpuStorage, InplaceOp1, InplaceOp2, Layout, Result, Shape, Tensor, bail};
use std::sync::Arc;

/// The experts of one site in matrices of their own.
#[derive(Clone)]
pub struct UnstackedLora {
    experts: Arc<[Vec<ExpertFactors>]>,
    layout: Arc<StackLayout>,
    input: usize,
    output: usize,
}

impl UnstackedLora {
    /// Each expert's factors at a site of `input` and `output` features, one for each projection that it adapts; their A's
    /// are rows of one matrix.
    ///
    /// # Errors
    /// If factors do not fit each other or the site, or an expert's A's are of several matrices.
    pub fn new(experts: Vec<Vec<ExpertFactors>>, input: usize, output: usize) -> Result<Self> {
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
        Ok(Self { experts: experts.into(), layout: Arc::new(layout), input, output })
    }

    /// The deltas of `groups` over `x`, `[tokens, in]`, as `[tokens, out]`; differentiable in `x`.
    pub fn delta(&self, x: &Tensor, groups: Arc<[TokenGroup]>) -> Result<Tensor> {
        op::unary(UnstackedOp { lora: self.clone(), op: self.op(groups) }, x)
    }

    /// Multiplies a single token with the A's of `groups`, and returns what adds their deltas to a site's outputs. Of more
    /// tokens, and where something is differentiated, all is left to [`UnstackedLora::add`].
    pub fn begin<'a>(&'a self, x: &'a Tensor, groups: Arc<[TokenGroup]>) -> Result<Addition<'a>> {
        if x.track_op() || x.dim(0)? != 1 {
            return Ok(Box::new(move |out| self.add(x, groups, out)));
        }
        let op = self.op(groups);
        let shrunk = cpu_tensor::with_values(&x.contiguous()?, NAME, |values| {
            Ok::<_, candle_core::Error>(op.shrink_token(&self.operands(Input { values, dims: x.dims() })?))
        })??;
        Ok(Box::new(move |out| out.add_in_place(|y| y.inplace_op1(&ExpandToken { lora: self, op, shrunk }))))
    }

    /// Adds the deltas of `groups` to a site's outputs; in place where nothing is differentiated.
    pub fn add(&self, x: &Tensor, groups: Arc<[TokenGroup]>, out: &mut Outputs) -> Result<()> {
        if x.track_op() || out.tensor().track_op() {
            return out.add(&self.delta(x, groups)?);
        }
        let (x, op) = (x.contiguous()?, UnstackedOp { lora: self.clone(), op: self.op(groups) });
        out.add_in_place(|y| y.inplace_op2(&x, &op))
    }

    fn op(&self, groups: Arc<[TokenGroup]>) -> GroupedOp {
        GroupedOp { layout: self.layout.clone(), groups }
    }

    fn factors(&self) -> FactorSource<'_> {
        FactorSource::Unstacked(&self.experts)
    }

    fn operands<'a>(&'a self, x: Input<'a>) -> Result<Operands<'a>> {
        if x.matrix()?.1 != self.input {
            bail!("{NAME} reads {} features and was given {}", self.input, x.matrix()?.1);
        }
        Ok(Operands { x: x.values, factors: self.factors(), input: self.input, output: self.output })
    }
}

const NAME: &str = "unstacked-lora";

/// The deltas of groups as an op of `x`, or added in place to a site's outputs.
struct UnstackedOp {
    lora: UnstackedLora,
    op: GroupedOp,
}

impl Op<1> for UnstackedOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let operands = self.lora.operands(x)?;
        let mut y = vec![0.0; operands.tokens() * operands.output];
        self.op.accumulate(&operands, &mut y);
        Ok((y, (operands.tokens(), operands.output).into()))
    }

    fn backward(&self, [x]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        let mut dx = vec![0.0; x.values.len()];
        self.op.input_gradient(&self.lora.operands(x)?, dy, Some(&mut dx));
        Ok([Some(dx)])
    }
}

impl InplaceOp2 for UnstackedOp {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, y: &mut CpuStorage, ly: &Layout, x: &CpuStorage, lx: &Layout) -> Result<()> {
        let operands = self.lora.operands(Input { values: cpu_tensor::values(x, lx, NAME)?, dims: lx.dims() })?;
        ensure_outputs(ly, operands.tokens(), operands.output)?;
        self.op.accumulate(&operands, cpu_tensor::values_mut(y, ly, NAME)?);
        Ok(())
    }
}

/// Adds the deltas of a one-token batch, from its products with A, to a site's outputs in place.
struct ExpandToken<'a> {
    lora: &'a UnstackedLora,
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
        self.op.expand_token(&self.shrunk, (self.lora.factors(), self.lora.output), y);
        Ok(())
    }
}

fn ensure_outputs(y: &Layout, tokens: usize, output: usize) -> Result<()> {
    if y.dims() != [tokens, output] {
        bail!("{NAME} makes {tokens} x {output} outputs and was given {:?}", y.dims());
    }
    Ok(())
}
