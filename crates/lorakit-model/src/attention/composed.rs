//! Self-attention made of candle's own ops, for devices without a kernel of ours; the reference that tests compare with.
//!
//! With `n` rows of `Q` queries and `K` keys each, a query sees one run of its row's keys, and all other scores are
//! masked: `softmax(q kᵀ / sqrt(features) + mask) v`. Queries are taken in blocks: `[n, heads, Q, K]` is held for one block
//! at a time, and nothing of that size is kept for the backward, which computes the scores again. Products are made in
//! [`AttentionHeads::products`]: over a 16-bit base, whose queries and keys have no more digits, a block takes half the
//! memory of f32 and uses the GPU's tensor cores.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::heads::AttentionHeads;
use crate::attention::score_masks::ScoreBlock;
use crate::attention::sdpa::Sdpa;
use crate::layer::rope::RopeTable;
use candle_core::{DType, Result, Tensor};
use lorakit_lora::kernels::vjp::with_vjp;

/// The same as [`self_attention`](crate::attention::self_attention), on any device.
pub fn composed_self_attention(qkv: &Tensor, heads: AttentionHeads, layout: &AttentionLayout) -> Result<Tensor> {
    let qkv = composed_rotate(qkv, heads, &layout.rope)?;
    let (at, layout) = (qkv.detach(), layout.clone());
    let output = |block: &ScoreBlock| sdpa(block, heads, &at)?.output()?.squeeze(0);
    let blocks = layout.masks.blocks(heads, &layout.segments, at.device())?;
    let parts: Vec<Tensor> = blocks.iter().map(output).collect::<Result<_>>()?;
    let y = match parts.as_slice() {
        [] => return qkv.narrow(1, 0, heads.queries * heads.features),
        [one] => one.clone(),
        _ => Tensor::cat(&parts, 0)?,
    };
    let output = y.clone();
    with_vjp(&qkv, y, move |dy| {
        let blocks = layout.masks.blocks(heads, &layout.segments, at.device())?;
        input_gradient(heads, blocks, &at, [&output, dy])
    })
}

/// The gradient of rotated `qkv`, block by block, from the output `y` and its gradient `dy`.
fn input_gradient(heads: AttentionHeads, blocks: &[ScoreBlock], qkv: &Tensor, [y, dy]: [&Tensor; 2]) -> Result<Tensor> {
    let (tokens, width) = (qkv.dim(0)?, heads.key_width());
    let mut dq = Vec::with_capacity(blocks.len());
    let sum = || Tensor::zeros((tokens, width), DType::F32, qkv.device());
    let (dk, dv) = (sum()?, sum()?);
    for block in blocks {
        let own = |t: &Tensor| t.narrow(0, block.queries.start, block.queries.len())?.unsqueeze(0);
        let gradients = sdpa(block, heads, qkv)?.gradients(&own(y)?, &own(dy)?)?;
        dq.push(gradients.q.squeeze(0)?);
        for (sum, part) in [(&dk, gradients.k), (&dv, gradients.v)] {
            let so_far = sum.narrow(0, block.keys.start, block.keys.len())?;
            sum.slice_set(&(so_far + part.squeeze(0)?)?, 0, block.keys.start)?;
        }
    }
    Tensor::cat(&[Tensor::cat(&dq, 0)?, dk, dv], 1)
}

/// A block's part of packed, rotated `qkv`.
fn sdpa(block: &ScoreBlock, heads: AttentionHeads, qkv: &Tensor) -> Result<Sdpa> {
    let part = |tokens: &std::ops::Range<usize>, first: usize, count: usize| {
        let rows = qkv.narrow(0, tokens.start, tokens.len())?;
        rows.narrow(1, first * heads.features, count * heads.features)?.unsqueeze(0)
    };
    let q = part(&block.queries, 0, heads.queries)?;
    let k = part(&block.keys, heads.queries, heads.keys)?;
    Sdpa::new(heads, &q, &k, &part(&block.keys, heads.queries + heads.keys, heads.keys)?, &block.mask)
}

/// The same as [`rotate`](crate::attention::rotate), on any device and differentiable: a gradient is rotated back.
pub fn composed_rotate(qkv: &Tensor, heads: AttentionHeads, rope: &RopeTable) -> Result<Tensor> {
    if rope.is_empty() {
        return Ok(qkv.clone());
    }
    let (cosines, sines) = rope.tensors(qkv.device())?;
    let rotated = rotated(&qkv.detach(), heads, cosines, sines)?;
    let rope = rope.clone();
    with_vjp(qkv, rotated, move |dy| {
        let (cosines, sines) = rope.tensors(dy.device())?;
        self::rotated(dy, heads, cosines, &sines.neg()?)
    })
}

/// `qkv` with the queries and keys of each token rotated by its angles: the first features of a head are paired with those
/// after them, `(x c - y s, y c + x s)`, and the rest of the head stays.
fn rotated(qkv: &Tensor, heads: AttentionHeads, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let (tokens, pairs, f) = (qkv.dim(0)?, cosines.dim(2)?, heads.features);
    let count = heads.queries + heads.keys;
    let rotated = qkv.narrow(1, 0, count * f)?.reshape((tokens, count, f))?;
    let (x, y) = (rotated.narrow(2, 0, pairs)?, rotated.narrow(2, pairs, pairs)?);
    let mut parts = vec![
        (x.broadcast_mul(cosines)? - y.broadcast_mul(sines)?)?,
        (y.broadcast_mul(cosines)? + x.broadcast_mul(sines)?)?,
    ];
    if 2 * pairs < f {
        parts.push(rotated.narrow(2, 2 * pairs, f - 2 * pairs)?);
    }
    let rotated = Tensor::cat(&parts, 2)?.reshape((tokens, count * f))?;
    Tensor::cat(&[rotated, qkv.narrow(1, count * f, heads.key_width())?], 1)
}
