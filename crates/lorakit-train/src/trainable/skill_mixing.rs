//! The mixing rule of Poly and MHR, and the forward hook that applies it.

use crate::trainable::dropout::Dropout;
use candle_core::Tensor;
use lorakit_lora::{GroupedLora, Outputs, Patch, SequenceBatch, StackBlock, StackLayout, TokenGroup, TokenSelection};
use std::ops::Range;
use std::sync::Arc;

/// The number of skills, and of blocks in which they are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkillDims {
    /// K.
    pub count: usize,
    /// S; 1 for Poly.
    pub splits: usize,
}

/// Added to the sum of a row's sigmoids.
const EPSILON: f64 = 1e-8;

/// The mixing weights `[n, splits, skills]` of logits `[n, splits * skills]`.
pub(crate) fn weights(logits: &Tensor, dims: SkillDims) -> candle_core::Result<Tensor> {
    let logits = logits.reshape((logits.dim(0)?, dims.splits, dims.count))?;
    // By tanh, which does not overflow: σ(z) = (1 + tanh(z / 2)) / 2.
    let sigmoid = (((logits * 0.5)?.tanh()? + 1.0)? * 0.5)?;
    sigmoid.broadcast_div(&(sigmoid.sum_keepdim(2)? + EPSILON)?)
}

/// Mixes stacked skills by weights `[n, splits, skills]` to A's, `[n * ranks of A, in]`, and B's, `[n * rank, out]`.
/// `blocks` are those of the first skill.
pub(crate) fn mixed(
    weights: &Tensor,
    a: &Tensor,
    b: &Tensor,
    blocks: &[StackBlock],
) -> candle_core::Result<(Tensor, Tensor)> {
    let a = mix(weights, a)?;
    if weights.dim(1)? == 1 {
        return Ok((a, mix(weights, b)?));
    }
    // Each projection's output is split on its own; columns without a projection stay zero.
    let (mut parts, mut end) = (Vec::new(), 0);
    let rows = weights.dim(0)? * b.dim(0)? / weights.dim(2)?;
    let zeros = |width| Tensor::zeros((rows, width), b.dtype(), b.device());
    for block in blocks {
        let Range { start, end: next } = block.columns.clone();
        if start > end {
            parts.push(zeros(start - end)?);
        }
        parts.push(mix(weights, &b.narrow(1, start, next - start)?.contiguous()?)?);
        end = next;
    }
    if end < b.dim(1)? {
        parts.push(zeros(b.dim(1)? - end)?);
    }
    Ok((a, Tensor::cat(&parts, 1)?))
}

/// `sum_k w[n, s, k] m[k, r, s, :]`: mixes stacked skills, `[skills * r, d]`, per block of columns to `[n * r, d]`.
fn mix(weights: &Tensor, stacked: &Tensor) -> candle_core::Result<Tensor> {
    let (n, splits, skills) = weights.dims3()?;
    let (rows, d) = stacked.dims2()?;
    let (r, width) = (rows / skills, d / splits);
    let by_split = stacked.reshape((skills, r, splits, width))?.permute((2, 0, 1, 3))?.contiguous()?;
    let by_split = by_split.reshape((splits, skills, r * width))?;
    let mixed = weights.permute((1, 0, 2))?.contiguous()?.matmul(&by_split)?;
    mixed.reshape((splits, n, r, width))?.permute((1, 2, 0, 3))?.contiguous()?.reshape((n * r, d))
}

/// The forward hook of one site: each row gets the adapter that its task's routing mixes from the skills.
pub(crate) struct SkillPatch {
    pub(crate) site: usize,
    pub(crate) dims: SkillDims,
    pub(crate) a: Tensor,
    pub(crate) b: Tensor,
    /// `[tasks, splits * skills]`.
    pub(crate) logits: Tensor,
    /// The blocks of the first skill.
    pub(crate) blocks: Vec<StackBlock>,
    pub(crate) dropout: Option<Dropout>,
}

impl Patch for SkillPatch {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let mut tasks: Vec<u32> = Vec::new();
        let mut groups: Vec<TokenGroup> = Vec::new();
        for row in rows.iter() {
            let Some(task) = row.expert.map(|task| task as u32) else { continue };
            let expert = tasks.iter().position(|known| *known == task).unwrap_or(tasks.len());
            if expert == tasks.len() {
                tasks.push(task);
            }
            groups.push(TokenGroup { expert, tokens: TokenSelection::Contiguous(row.tokens()), weights: None });
        }
        if tasks.is_empty() {
            return Ok(());
        }
        let count = tasks.len();
        let chosen = self.logits.index_select(&Tensor::from_vec(tasks, count, self.logits.device())?, 0)?;
        let (a, b) = mixed(&weights(&chosen, self.dims)?, &self.a, &self.b, &self.blocks)?;
        let (ranks_a, ranks_b) = (a.dim(0)? / count, b.dim(0)? / count);
        let of_task = |task: usize| {
            let moved = |range: &Range<usize>, by: usize| range.start + by..range.end + by;
            let block = |block: &StackBlock| StackBlock {
                a: moved(&block.a, task * ranks_a),
                b: moved(&block.b, task * ranks_b),
                ..block.clone()
            };
            self.blocks.iter().map(block).collect()
        };
        let grouped = GroupedLora::new(a, b, Arc::new(StackLayout((0..count).map(of_task).collect())))?;
        match &self.dropout {
            Some(dropout) => grouped.add(&dropout.apply(x, rows, self.site)?, groups.into(), out),
            None => grouped.add(x, groups.into(), out),
        }
    }
}
