//! Attention by candle's own ops, for devices without a kernel of ours: masked scores, in blocks of queries.
//!
//! With `n` rows of `Q` queries and `K` keys each, a query sees one stretch of its row's keys, and the scores of all
//! others are masked: `softmax(q kᵀ / sqrt(features) + mask) v`. `[n, heads, Q, K]` is held while a block is attended;
//! nothing of that size is kept for the backward, which makes the scores again.

use crate::attention::{Heads, Packing, Segment};
use crate::rope::Angles;
use candle_core::{D, DType, Device, Result, Tensor};
use lorakit_adapter::vjp::{recomputed, with_vjp};
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
    let visible: Vec<Range<usize>> = packing.segments.iter().flat_map(|segment| visible_of(heads, segment)).collect();
    recomputed(&qkv, move |qkv| within_blocks(qkv, heads, &visible))
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
    let rows: Vec<CachedRow> = segments.iter().filter(|s| !s.queries.is_empty()).map(CachedRow::of).collect();
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
        let out = attend(
            heads,
            &queries.index_select(&asked, 0)?.reshape((n, q, heads.queries, heads.features))?,
            &keys.index_select(&seen, 0)?.reshape((n, k, heads.keys, heads.features))?,
            &values.index_select(&seen, 0)?.reshape((n, k, heads.keys, heads.features))?,
            &visible,
        )?;
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

/// One row's queries among the tokens, and the slots of its keys.
struct CachedRow {
    queries: Range<usize>,
    slots: Vec<u32>,
}

impl CachedRow {
    fn of(segment: &Segment) -> Self {
        let slots = segment.keys.iter().cloned().flatten().map(|slot| slot as u32).collect();
        Self { queries: segment.queries.clone(), slots }
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

/// The tokens that each query of a packed row sees.
fn visible_of(heads: Heads, segment: &Segment) -> impl Iterator<Item = Range<usize>> {
    let (first, n) = (segment.queries.start, segment.queries.len());
    (0..n).map(move |i| {
        let visible = heads.visible(i, n, n);
        first + visible.start..first + visible.end
    })
}

/// Attention of packed, rotated rows, of whose tokens each sees those that `visible` says.
fn within_blocks(qkv: &Tensor, heads: Heads, visible: &[Range<usize>]) -> Result<Tensor> {
    let (tokens, f) = (qkv.dim(0)?, heads.features);
    let head = |first: usize, count: usize| qkv.narrow(1, first * f, count * f)?.reshape((1, tokens, count, f));
    let (q, k) = (head(0, heads.queries)?, head(heads.queries, heads.keys)?);
    let v = head(heads.queries + heads.keys, heads.keys)?;
    let mut outputs = Vec::new();
    for start in (0..tokens).step_by(BLOCK) {
        let own = &visible[start..visible.len().min(start + BLOCK)];
        let first = own.iter().map(|seen| seen.start).min().unwrap_or(start);
        let count = start + own.len() - first;
        let own_keys: Vec<Range<usize>> = own.iter().map(|seen| seen.start - first..seen.end - first).collect();
        let out = attend(
            heads,
            &q.narrow(1, start, own.len())?,
            &k.narrow(1, first, count)?,
            &v.narrow(1, first, count)?,
            &own_keys,
        )?;
        outputs.push(out.squeeze(0)?);
    }
    match outputs.as_slice() {
        [] => qkv.narrow(1, 0, heads.queries * f),
        [one] => Ok(one.clone()),
        _ => Tensor::cat(&outputs, 0),
    }
}

/// `q`, `[n, Q, queries, features]`, attends to `k` and `v`, `[n, K, keys, features]`; `visible` holds what each of the
/// `n Q` queries sees of its row's keys. `[n, Q, queries * features]`.
fn attend(heads: Heads, q: &Tensor, k: &Tensor, v: &Tensor, visible: &[Range<usize>]) -> Result<Tensor> {
    let (n, queries, _, f) = q.dims4()?;
    let (keys, shared) = (k.dim(1)?, heads.shared());
    // The heads that share keys stand below one another, so that no key is repeated.
    let q = q.reshape((n, queries, heads.keys, shared, f))?.permute((0, 2, 3, 1, 4))?;
    let q = q.contiguous()?.reshape((n * heads.keys, shared * queries, f))?;
    let by_head = |t: &Tensor| t.transpose(1, 2)?.contiguous()?.reshape((n * heads.keys, keys, f));
    let (k, v) = (by_head(k)?, by_head(v)?);
    let scores = (q.matmul(&k.t()?)? * (1.0 / (f as f64).sqrt()))?;
    let mask = mask(visible, (n, queries, keys), q.device())?;
    let weights = softmax(&scores.reshape((n, heads.queries, queries, keys))?, &mask)?;
    let out = weights.reshape((n * heads.keys, shared * queries, keys))?.matmul(&v)?;
    let out = out.reshape((n, heads.keys, shared, queries, f))?.permute((0, 3, 1, 2, 4))?;
    out.contiguous()?.reshape((n, queries, heads.queries * f))
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

/// Softmax over the last dimension of `scores + mask`: `dS = P (dP - rowsum(P dP))`.
fn softmax(scores: &Tensor, mask: &Tensor) -> Result<Tensor> {
    let masked = scores.detach().broadcast_add(mask)?;
    let weights = masked.broadcast_sub(&masked.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    let p = weights.clone();
    with_vjp(scores, weights, move |dp| {
        let along = (&p * dp)?.sum_keepdim(D::Minus1)?;
        &p * dp.broadcast_sub(&along)?
    })
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
