//! Attention by candle's own ops, for devices without a kernel of ours: masked scores, in blocks of queries.
//!
//! With `n` rows of `Q` queries and `K` keys each, a query sees one stretch of its row's keys, and the scores of all
//! others are masked: `softmax(q kᵀ / sqrt(features) + mask) v`. `[n, heads, Q, K]` is held while a block is attended;
//! nothing of that size is kept for the backward, which makes the scores again. Queries, keys and weights are multiplied
//! in [`Heads::products`]: over a 16-bit base, whose queries and keys have no more digits, a block takes half the memory
//! that it would in f32, and the fast units of a card take its products.

use crate::attention::{Heads, Packing, Segment};
use crate::masked_scores::{Meeting, mask};
use crate::once::once;
use crate::padded_attention::Cached;
use crate::rope::Angles;
use candle_core::{DType, Device, Result, Tensor};
use lorakit_lora::vjp::with_vjp;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Queries that are handled at a time. Short rows share a block, and a long one sees no more keys than its block does.
pub(crate) const BLOCK: usize = 512;

/// The same as [`crate::attention::self_attention`].
pub fn plain_self_attention(qkv: &Tensor, heads: Heads, packing: &Packing) -> Result<Tensor> {
    let qkv = plain_rotated(qkv, heads, &packing.angles)?;
    let (at, packing) = (qkv.detach(), packing.clone());
    let output = |block: &Block| block.meeting(heads, &at)?.output()?.squeeze(0);
    let parts: Vec<Tensor> = blocks(heads, &packing, &at)?.iter().map(output).collect::<Result<_>>()?;
    let y = match parts.as_slice() {
        [] => return qkv.narrow(1, 0, heads.queries * heads.features),
        [one] => one.clone(),
        _ => Tensor::cat(&parts, 0)?,
    };
    let made = y.clone();
    with_vjp(&qkv, y, move |dy| input_gradient(heads, blocks(heads, &packing, &at)?, &at, &made, dy))
}

/// The gradient of rotated `qkv`, block by block, from that of `y`, which was made of it.
fn input_gradient(heads: Heads, blocks: &[Block], qkv: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (tokens, width) = (qkv.dim(0)?, heads.key_width());
    let mut dq = Vec::with_capacity(blocks.len());
    let sum = || Tensor::zeros((tokens, width), DType::F32, qkv.device());
    let (dk, dv) = (sum()?, sum()?);
    for block in blocks {
        let own = |t: &Tensor| t.narrow(0, block.queries.start, block.queries.len())?.unsqueeze(0);
        let gradients = block.meeting(heads, qkv)?.gradients(&own(y)?, &own(dy)?)?;
        dq.push(gradients.q.squeeze(0)?);
        for (sum, part) in [(&dk, gradients.k), (&dv, gradients.v)] {
            let so_far = sum.narrow(0, block.keys.start, block.keys.len())?;
            sum.slice_set(&(so_far + part.squeeze(0)?)?, 0, block.keys.start)?;
        }
    }
    Tensor::cat(&[Tensor::cat(&dq, 0)?, dk, dv], 1)
}

/// The same as [`crate::attention::rotated`], and differentiable: a rotation's gradient is turned back.
pub fn plain_rotated(qkv: &Tensor, heads: Heads, angles: &Angles) -> Result<Tensor> {
    let (cosines, sines) = angles.tensors(qkv.device())?;
    let turned = turn(&qkv.detach(), heads, cosines, sines)?;
    let angles = angles.clone();
    with_vjp(qkv, turned, move |dy| {
        let (cosines, sines) = angles.tensors(dy.device())?;
        turn(dy, heads, cosines, &sines.neg()?)
    })
}

/// What attention to a batch needs on its device, and every layer alike: made by the first that asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Prepared {
    blocks: Arc<OnceLock<Vec<Block>>>,
    pub(crate) cached: Arc<OnceLock<Cached>>,
}

/// A stretch of a batch's queries, and the keys that any of them sees.
#[derive(Debug)]
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
    /// `[1, 1, queries, keys]`.
    mask: Tensor,
}

/// The queries of packed rows in blocks, on the device of `qkv`.
fn blocks<'a>(heads: Heads, packing: &'a Packing, qkv: &Tensor) -> Result<&'a [Block]> {
    let make = || {
        let visible: Vec<Range<usize>> = packing.segments.iter().flat_map(|row| visible_of(heads, row)).collect();
        let block = |(index, own)| Block::new(heads, index * BLOCK, own, qkv.device());
        visible.chunks(BLOCK).enumerate().map(block).collect()
    };
    once(&packing.prepared.blocks, make).map(Vec::as_slice)
}

/// The tokens that each query of a packed row sees.
fn visible_of(heads: Heads, segment: &Segment) -> impl Iterator<Item = Range<usize>> {
    let (first, n) = (segment.queries.start, segment.queries.len());
    (0..n).map(move |i| {
        let visible = heads.visible(i, n, n);
        first + visible.start..first + visible.end
    })
}

impl Block {
    /// The queries from `start` on, of which each sees the tokens that `visible` says.
    fn new(heads: Heads, start: usize, visible: &[Range<usize>], device: &Device) -> Result<Self> {
        let (first, end) = (visible.iter().map(|seen| seen.start).min().unwrap_or(start), start + visible.len());
        let visible: Vec<Range<usize>> = visible.iter().map(|seen| seen.start - first..seen.end - first).collect();
        let mask = mask(&visible, (1, end - start, end - first), heads, device)?;
        Ok(Self { queries: start..end, keys: first..end, mask })
    }

    /// Its part of packed, rotated rows.
    fn meeting(&self, heads: Heads, qkv: &Tensor) -> Result<Meeting> {
        let part = |tokens: &Range<usize>, first: usize, count: usize| {
            let rows = qkv.narrow(0, tokens.start, tokens.len())?;
            rows.narrow(1, first * heads.features, count * heads.features)?.unsqueeze(0)
        };
        let q = part(&self.queries, 0, heads.queries)?;
        let k = part(&self.keys, heads.queries, heads.keys)?;
        Meeting::new(heads, &q, &k, &part(&self.keys, heads.queries + heads.keys, heads.keys)?, &self.mask)
    }
}

/// `qkv` with the queries and keys of each token rotated by its angle: of each head the first features are turned
/// against those behind them, `(x c - y s, y c + x s)`, and what is left of it stays.
fn turn(qkv: &Tensor, heads: Heads, cosines: &Tensor, sines: &Tensor) -> Result<Tensor> {
    let (tokens, pairs, f) = (qkv.dim(0)?, cosines.dim(2)?, heads.features);
    let count = heads.queries + heads.keys;
    let turned = qkv.narrow(1, 0, count * f)?.reshape((tokens, count, f))?;
    let (x, y) = (turned.narrow(2, 0, pairs)?, turned.narrow(2, pairs, pairs)?);
    let mut parts = vec![
        (x.broadcast_mul(cosines)? - y.broadcast_mul(sines)?)?,
        (y.broadcast_mul(cosines)? + x.broadcast_mul(sines)?)?,
    ];
    if 2 * pairs < f {
        parts.push(turned.narrow(2, 2 * pairs, f - 2 * pairs)?);
    }
    let turned = Tensor::cat(&parts, 2)?.reshape((tokens, count * f))?;
    Tensor::cat(&[turned, qkv.narrow(1, count * f, heads.key_width())?], 1)
}
