//! Attention by candle's own ops, for devices without a kernel of ours: masked scores, in blocks of queries.
//!
//! With `n` rows of `Q` queries and `K` keys each, a query sees one stretch of its row's keys, and the scores of all
//! others are masked: `softmax(q kᵀ / sqrt(features) + mask) v`. `[n, heads, Q, K]` is held while a block is attended;
//! nothing of that size is kept for the backward, which makes the scores again. Queries, keys and weights are multiplied
//! in [`Heads::products`]: over a 16-bit base, whose queries and keys have no more digits, a block takes half the memory
//! that it would in f32, and the fast units of a card take its products.

use crate::attention::{Heads, Packing, Segment};
use crate::rope::Angles;
use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use lorakit_adapter::vjp::with_vjp;
use std::ops::Range;
use std::sync::Arc;

/// Queries that are handled at a time. Short rows share a block, and a long one sees no more keys than its block does.
const BLOCK: usize = 512;

/// Scores that cached rows are attended by at a time: 1 GiB.
const SCORES: usize = 1 << 28;

/// What a masked score is below all others.
const MASKED: f64 = 1e30;

/// The same as [`crate::attention::self_attention`].
pub fn plain_self_attention(qkv: &Tensor, heads: Heads, packing: &Packing) -> Result<Tensor> {
    let qkv = plain_rotated(qkv, heads, &packing.angles)?;
    let blocks = blocks(heads, &packing.segments);
    let at = qkv.detach();
    let parts: Vec<Tensor> =
        blocks.iter().map(|block| block.meeting(heads, &at)?.output()?.squeeze(0)).collect::<Result<_>>()?;
    let y = match parts.as_slice() {
        [] => return qkv.narrow(1, 0, heads.queries * heads.features),
        [one] => one.clone(),
        _ => Tensor::cat(&parts, 0)?,
    };
    let made = y.clone();
    with_vjp(&qkv, y, move |dy| input_gradient(heads, &blocks, &at, &made, dy))
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
    let turned = turn(&qkv.detach(), heads, &cosines, &sines)?;
    with_vjp(qkv, turned, move |dy| turn(dy, heads, &cosines, &sines.neg()?))
}

/// The same as [`crate::attention::cached_attention`]: rows are padded to the longest of those attended together.
pub fn plain_cached_attention(
    qkv: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: Heads,
    segments: &Arc<[Segment]>,
) -> Result<Tensor> {
    let (tokens, device) = (qkv.dim(0)?, qkv.device());
    let queries = qkv.narrow(1, 0, heads.queries * heads.features)?.contiguous()?;
    let rows: Vec<CachedRow> = segments.iter().flat_map(CachedRow::of).collect();
    let (mut outputs, mut order, mut made) = (Vec::new(), vec![0u32; tokens], 0);
    for rows in within_scores(&rows, heads.queries) {
        let (q, k) = longest(rows);
        let padded = |of: &dyn Fn(&CachedRow) -> Vec<u32>, length: usize| -> Result<Tensor> {
            let pad = |row: &CachedRow| {
                let mut index = of(row);
                index.resize(length, index[0]);
                index
            };
            Tensor::new(rows.iter().flat_map(pad).collect::<Vec<u32>>(), device)
        };
        let (asked, seen) =
            (padded(&|row| row.queries.clone().map(|t| t as u32).collect(), q)?, padded(&|row| row.slots.clone(), k)?);
        let mut visible = Vec::with_capacity(rows.len() * q);
        for row in rows {
            let own = (0..row.queries.len()).map(|i| heads.visible(i, row.queries.len(), row.slots.len()));
            // What stands in for queries that a row does not have may see anything.
            visible.extend(own.chain(std::iter::repeat_n(0..k, q - row.queries.len())));
        }
        let n = rows.len();
        let of = |t: &Tensor, index: &Tensor, length: usize| t.index_select(index, 0)?.reshape((n, length, t.dim(1)?));
        let (own, k_of, v_of) = (of(&queries, &asked, q)?, of(keys, &seen, k)?, of(values, &seen, k)?);
        let out = Meeting::new(heads, &own, &k_of, &v_of, &visible)?.output()?;
        for (place, row) in rows.iter().enumerate() {
            row.queries.clone().enumerate().for_each(|(i, token)| order[token] = (made + place * q + i) as u32);
        }
        made += n * q;
        outputs.push(out.reshape((n * q, heads.queries * heads.features))?);
    }
    if outputs.is_empty() {
        return queries.zeros_like();
    }
    Tensor::cat(&outputs, 0)?.index_select(&Tensor::new(order, device)?, 0)
}

/// A row's queries among the tokens, no more than a block of them, and the slots of its keys, the last of which belongs to
/// the last of the queries.
struct CachedRow {
    queries: Range<usize>,
    slots: Vec<u32>,
}

impl CachedRow {
    /// All queries of a row, block by block: those of a long prompt see fewer keys the earlier they stand.
    fn of(segment: &Segment) -> impl Iterator<Item = Self> + use<> {
        let slots: Vec<u32> = segment.keys.iter().cloned().flatten().map(|slot| slot as u32).collect();
        let (queries, before) = (segment.queries.clone(), slots.len() - segment.queries.len());
        queries.clone().step_by(BLOCK).map(move |start| {
            let end = queries.end.min(start + BLOCK);
            Self { queries: start..end, slots: slots[..before + end - queries.start].to_vec() }
        })
    }
}

/// The largest numbers of queries and of keys.
fn longest(rows: &[CachedRow]) -> (usize, usize) {
    rows.iter().fold((0, 0), |(q, k), row| (q.max(row.queries.len()), k.max(row.slots.len())))
}

/// The rows, in order, in parts whose padded scores are no more than are held at a time; or in single rows.
fn within_scores(rows: &[CachedRow], heads: usize) -> Vec<&[CachedRow]> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for end in 1..=rows.len() {
        let (q, k) = longest(&rows[start..end]);
        if end - start > 1 && (end - start) * heads * q * k > SCORES {
            parts.push(&rows[start..end - 1]);
            start = end - 1;
        }
    }
    if start < rows.len() {
        parts.push(&rows[start..]);
    }
    parts
}

/// A stretch of a batch's queries, and the keys that any of them sees.
struct Block {
    queries: Range<usize>,
    keys: Range<usize>,
    /// What each query sees, counted from the first of the keys.
    visible: Vec<Range<usize>>,
}

/// The queries of packed rows in blocks.
fn blocks(heads: Heads, segments: &[Segment]) -> Vec<Block> {
    let visible: Vec<Range<usize>> = segments.iter().flat_map(|segment| visible_of(heads, segment)).collect();
    let block = |(index, own): (usize, &[Range<usize>])| {
        let start = index * BLOCK;
        let first = own.iter().map(|seen| seen.start).min().unwrap_or(start);
        Block {
            queries: start..start + own.len(),
            keys: first..start + own.len(),
            visible: own.iter().map(|seen| seen.start - first..seen.end - first).collect(),
        }
    };
    visible.chunks(BLOCK).enumerate().map(block).collect()
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
    /// Its part of packed, rotated rows.
    fn meeting(&self, heads: Heads, qkv: &Tensor) -> Result<Meeting> {
        let part = |tokens: &Range<usize>, first: usize, count: usize| {
            let rows = qkv.narrow(0, tokens.start, tokens.len())?;
            rows.narrow(1, first * heads.features, count * heads.features)?.unsqueeze(0)
        };
        let q = part(&self.queries, 0, heads.queries)?;
        let k = part(&self.keys, heads.queries, heads.keys)?;
        Meeting::new(heads, &q, &k, &part(&self.keys, heads.queries + heads.keys, heads.keys)?, &self.visible)
    }
}

/// Queries of `n` rows with the keys and values that they attend to: one matrix for each row and key head, in
/// [`Heads::products`]. The heads that share keys stand below one another, so that no key is repeated.
struct Meeting {
    heads: Heads,
    /// Divided by `sqrt(features)`, as there are fewer queries than scores: `[n keys, shared Q, features]`.
    q: Tensor,
    /// `[n keys, K, features]`.
    k: Tensor,
    v: Tensor,
    /// `[n, 1, Q, K]`.
    mask: Tensor,
}

/// The gradients of a meeting, as its queries, keys and values were given.
struct Gradients {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Meeting {
    /// `q`, `[n, Q, queries * features]`, and `k` and `v`, `[n, K, keys * features]`; `visible` holds what each of the
    /// `n Q` queries sees of its row's keys.
    fn new(heads: Heads, q: &Tensor, k: &Tensor, v: &Tensor, visible: &[Range<usize>]) -> Result<Self> {
        let shape = (q.dim(0)?, q.dim(1)?, k.dim(1)?);
        Ok(Self {
            heads,
            q: by_key_head(&(q * heads.scale())?, heads)?,
            k: by_key_head(k, heads)?,
            v: by_key_head(v, heads)?,
            mask: mask(visible, shape, q.device())?.to_dtype(heads.products)?,
        })
    }

    /// What every query takes of every value: `P = softmax(q kᵀ + mask)`, `[n keys, shared Q, K]`.
    fn weights(&self) -> Result<Tensor> {
        let (n, _, queries, keys) = self.mask.dims4()?;
        let scores = self.q.matmul(&self.k.t()?)?;
        let scores = scores.reshape((n, self.heads.queries, queries, keys))?.broadcast_add(&self.mask)?;
        softmax_last_dim(&scores)?.reshape((n * self.heads.keys, self.heads.shared() * queries, keys))
    }

    /// `P v`, `[n, Q, queries * features]`, in f32.
    fn output(&self) -> Result<Tensor> {
        by_token(&self.weights()?.matmul(&self.v)?, self.mask.dim(2)?, self.heads)
    }

    /// From the output and its gradient, `[n, Q, queries * features]` each:
    ///
    /// `dv = Pᵀ dy`, `dS = P (dy vᵀ - rowsum(dy y))`, `dq = dS k / sqrt(features)` and `dk = dSᵀ q / sqrt(features)`;
    /// `rowsum(P dP)` is `rowsum(dy y)`, of which there are fewer (Dao et al. 2022, <https://arxiv.org/abs/2205.14135>).
    fn gradients(&self, y: &Tensor, dy: &Tensor) -> Result<Gradients> {
        let (n, queries, _) = y.dims3()?;
        let along = (y * dy)?.reshape((n, queries, self.heads.queries, self.heads.features))?.sum(D::Minus1)?;
        let along = by_key_head(&along, Heads { features: 1, ..self.heads })?;
        let (p, dy) = (self.weights()?, by_key_head(dy, self.heads)?);
        let ds = (dy.matmul(&self.v.t()?)?.broadcast_sub(&along)? * &p)?;
        let keys = self.k.dim(1)?;
        Ok(Gradients {
            q: (by_token(&ds.matmul(&self.k)?, queries, self.heads)? * self.heads.scale())?,
            k: by_token(&ds.t()?.matmul(&self.q)?, keys, self.heads)?,
            v: by_token(&p.t()?.matmul(&dy)?, keys, self.heads)?,
        })
    }
}

/// `[n, T, keys * shared * features]` as `[n keys, shared T, features]`, in [`Heads::products`]; `shared` is 1 for what
/// each key head has one of.
fn by_key_head(t: &Tensor, heads: Heads) -> Result<Tensor> {
    let (n, tokens, width) = t.dims3()?;
    let shared = width / heads.key_width();
    let t = t.reshape((n, tokens, heads.keys, shared, heads.features))?.permute((0, 2, 3, 1, 4))?;
    t.to_dtype(heads.products)?.contiguous()?.reshape((n * heads.keys, shared * tokens, heads.features))
}

/// The way back from [`by_key_head`], to f32: `[n, tokens, keys * shared * features]`.
fn by_token(t: &Tensor, tokens: usize, heads: Heads) -> Result<Tensor> {
    let (n, shared) = (t.dim(0)? / heads.keys, t.dim(1)? / tokens);
    let t = t.reshape((n, heads.keys, shared, tokens, heads.features))?.permute((0, 3, 1, 2, 4))?;
    t.to_dtype(DType::F32)?.contiguous()?.reshape((n, tokens, heads.keys * shared * heads.features))
}

/// Zero where a query sees a key, and far below any score where it does not: `[n, 1, Q, K]`. Two numbers for each query
/// go to the device, and are compared with the keys' places there.
fn mask(visible: &[Range<usize>], (n, queries, keys): (usize, usize, usize), device: &Device) -> Result<Tensor> {
    // Whole numbers up to 2^24 are exact in f32.
    let of = |bound: fn(&Range<usize>) -> usize| {
        let bounds: Vec<f32> = visible.iter().map(|seen| bound(seen) as f32).collect();
        Tensor::from_vec(bounds, (n, 1, queries, 1), device)
    };
    let places = Tensor::from_vec((0..keys).map(|key| key as f32).collect(), (1, 1, 1, keys), device)?;
    let begun = of(|seen| seen.start)?.broadcast_le(&places)?.to_dtype(DType::F32)?;
    let ended = of(|seen| seen.end)?.broadcast_le(&places)?.to_dtype(DType::F32)?;
    (begun - ended)?.affine(MASKED, -MASKED)
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
