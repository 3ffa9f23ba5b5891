//! Attention to cached keys by candle's own ops: rows padded to the longest of those that are attended together.

use crate::attention::{Heads, Packing, Segment};
use crate::masked_attention::BLOCK;
use crate::masked_scores::{Meeting, mask};
use crate::once::once;
use candle_core::{Device, Result, Tensor};
use std::ops::Range;

/// Scores that rows are attended by at a time: 1 GiB in f32, with a masked copy and their softmax beside them.
const SCORES: usize = 1 << 28;

/// The same as [`crate::attention::cached_attention`]: rows are padded to the longest of those attended together.
pub fn plain_cached_attention(
    qkv: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: Heads,
    packing: &Packing,
) -> Result<Tensor> {
    let queries = qkv.narrow(1, 0, heads.queries * heads.features)?.contiguous()?;
    let make = || Cached::new(heads, &packing.segments, qkv.dim(0)?, qkv.device());
    let cached = once(&packing.prepared.cached, make)?;
    let output = |part: &CachedPart| {
        let (n, _, q, k) = part.mask.dims4()?;
        let of = |t: &Tensor, index: &Tensor, length: usize| t.index_select(index, 0)?.reshape((n, length, t.dim(1)?));
        let (own, keys) = (of(&queries, &part.queries, q)?, of(keys, &part.slots, k)?);
        let out = Meeting::new(heads, &own, &keys, &of(values, &part.slots, k)?, &part.mask)?.output()?;
        out.reshape((n * q, heads.queries * heads.features))
    };
    let outputs: Vec<Tensor> = cached.parts.iter().map(output).collect::<Result<_>>()?;
    if outputs.is_empty() {
        return queries.zeros_like();
    }
    Tensor::cat(&outputs, 0)?.index_select(&cached.order, 0)
}

/// Rows whose keys stand in a cache.
#[derive(Debug)]
pub(crate) struct Cached {
    parts: Vec<CachedPart>,
    /// Where each token's output stands among those of the parts.
    order: Tensor,
}

/// Rows that are attended together, padded to the longest.
#[derive(Debug)]
struct CachedPart {
    /// The tokens that ask, row by row.
    queries: Tensor,
    /// The slots of the keys, row by row.
    slots: Tensor,
    /// `[rows, 1, queries, slots]` of a row.
    mask: Tensor,
}

impl Cached {
    fn new(heads: Heads, segments: &[Segment], tokens: usize, device: &Device) -> Result<Self> {
        let rows: Vec<CachedRow> = segments.iter().flat_map(CachedRow::of).collect();
        let (mut parts, mut order, mut made) = (Vec::new(), vec![0u32; tokens], 0);
        for rows in within_scores(&rows, heads.queries) {
            let (q, _) = longest(rows);
            for (place, row) in rows.iter().enumerate() {
                row.queries.clone().enumerate().for_each(|(i, token)| order[token] = (made + place * q + i) as u32);
            }
            made += rows.len() * q;
            parts.push(CachedPart::new(heads, rows, device)?);
        }
        Ok(Self { parts, order: Tensor::new(order, device)? })
    }
}

impl CachedPart {
    fn new(heads: Heads, rows: &[CachedRow], device: &Device) -> Result<Self> {
        let (q, k) = longest(rows);
        let padded = |of: &dyn Fn(&CachedRow) -> Vec<u32>, length: usize| -> Result<Tensor> {
            let pad = |row: &CachedRow| {
                let mut index = of(row);
                index.resize(length, index[0]);
                index
            };
            Tensor::new(rows.iter().flat_map(pad).collect::<Vec<u32>>(), device)
        };
        let visible = |row: &CachedRow| -> Vec<Range<usize>> {
            let (queries, keys) = (row.queries.len(), row.slots.len());
            // What stands in for queries that a row does not have may see anything.
            let padding = std::iter::repeat_n(0..k, q - queries);
            (0..queries).map(|i| heads.visible(i, queries, keys)).chain(padding).collect()
        };
        let visible: Vec<Range<usize>> = rows.iter().flat_map(visible).collect();
        Ok(Self {
            queries: padded(&|row| row.queries.clone().map(|t| t as u32).collect(), q)?,
            slots: padded(&|row| row.slots.clone(), k)?,
            mask: mask(&visible, (rows.len(), q, k), heads, device)?,
        })
    }
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
