//! Masks and indices on a device for attention composed of candle's own ops.

use crate::attention::heads::AttentionHeads;
use crate::attention::segment::AttentionSegment;
use crate::lazy::get_or_try_init;
use candle_core::{DType, Device, Result, Tensor};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Queries of a block. Short sequences share a block, and a long one sees no more keys than its block does.
const BLOCK: usize = 512;

/// Scores held at a time by cached attention: 1 GiB in f32, beside a masked copy and their softmax.
const SCORES: usize = 1 << 28;

/// The value added to a masked score, below all others.
const MASKED: f64 = 1e30;

/// What attention to a batch needs on its device, the same for every layer: made by the first that asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScoreMasks {
    blocks: Arc<OnceLock<Vec<ScoreBlock>>>,
    cached: Arc<OnceLock<CachedBlocks>>,
}

impl ScoreMasks {
    /// The queries of sequences that attend to themselves, in blocks.
    pub(crate) fn blocks(
        &self,
        heads: AttentionHeads,
        segments: &[AttentionSegment],
        device: &Device,
    ) -> Result<&[ScoreBlock]> {
        let make = || {
            let visible: Vec<Range<usize>> = segments.iter().flat_map(|row| row.visible_tokens(heads)).collect();
            let block = |(index, own)| ScoreBlock::new(heads, index * BLOCK, own, device);
            visible.chunks(BLOCK).enumerate().map(block).collect()
        };
        get_or_try_init(&self.blocks, make).map(Vec::as_slice)
    }

    /// The queries of sequences whose keys are in a cache, of which there are `tokens`, in padded blocks.
    pub(crate) fn cached(
        &self,
        heads: AttentionHeads,
        segments: &[AttentionSegment],
        tokens: usize,
        device: &Device,
    ) -> Result<&CachedBlocks> {
        get_or_try_init(&self.cached, || CachedBlocks::new(heads, segments, tokens, device))
    }
}

/// A run of a batch's queries, and the keys that any of them sees.
#[derive(Debug)]
pub(crate) struct ScoreBlock {
    pub(crate) queries: Range<usize>,
    pub(crate) keys: Range<usize>,
    /// `[1, 1, queries, keys]`.
    pub(crate) mask: Tensor,
}

impl ScoreBlock {
    /// The queries from `start` on, of which each sees the tokens that `visible` says.
    fn new(heads: AttentionHeads, start: usize, visible: &[Range<usize>], device: &Device) -> Result<Self> {
        let (first, end) = (visible.iter().map(|seen| seen.start).min().unwrap_or(start), start + visible.len());
        let visible: Vec<Range<usize>> = visible.iter().map(|seen| seen.start - first..seen.end - first).collect();
        let mask = mask(&visible, (1, end - start, end - first), heads, device)?;
        Ok(Self { queries: start..end, keys: first..end, mask })
    }
}

/// Sequences whose keys are in a cache, in groups that are padded to their longest.
#[derive(Debug)]
pub(crate) struct CachedBlocks {
    pub(crate) parts: Vec<CachedBlock>,
    /// For each token, the row of its output among those of the parts.
    pub(crate) order: Tensor,
}

/// Sequences attended to together, padded to the longest.
#[derive(Debug)]
pub(crate) struct CachedBlock {
    /// The tokens that ask, sequence by sequence.
    pub(crate) queries: Tensor,
    /// The cache slots of the keys, sequence by sequence.
    pub(crate) slots: Tensor,
    /// `[sequences, 1, queries, slots]` of a sequence.
    pub(crate) mask: Tensor,
}

impl CachedBlocks {
    fn new(heads: AttentionHeads, segments: &[AttentionSegment], tokens: usize, device: &Device) -> Result<Self> {
        let rows: Vec<CachedQueries> = segments.iter().flat_map(CachedQueries::of).collect();
        let (mut parts, mut order, mut made) = (Vec::new(), vec![0u32; tokens], 0);
        for rows in within_scores(&rows, heads.queries) {
            let (q, _) = longest(rows);
            for (index, row) in rows.iter().enumerate() {
                row.queries.clone().enumerate().for_each(|(i, token)| order[token] = (made + index * q + i) as u32);
            }
            made += rows.len() * q;
            parts.push(CachedBlock::new(heads, rows, device)?);
        }
        Ok(Self { parts, order: Tensor::new(order, device)? })
    }
}

impl CachedBlock {
    fn new(heads: AttentionHeads, rows: &[CachedQueries], device: &Device) -> Result<Self> {
        let (q, k) = longest(rows);
        let padded = |of: &dyn Fn(&CachedQueries) -> Vec<u32>, length: usize| -> Result<Tensor> {
            let pad = |row: &CachedQueries| {
                let mut index = of(row);
                index.resize(length, index[0]);
                index
            };
            Tensor::new(rows.iter().flat_map(pad).collect::<Vec<u32>>(), device)
        };
        let visible = |row: &CachedQueries| -> Vec<Range<usize>> {
            let (queries, keys) = (row.queries.len(), row.slots.len());
            // Padding queries may see anything: their output is never read.
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

/// At most a block of one sequence's queries, and the slots of its keys, the last of which belongs to the last query.
struct CachedQueries {
    queries: Range<usize>,
    slots: Vec<u32>,
}

impl CachedQueries {
    /// All queries of a sequence, block by block: the earlier queries of a long prompt see fewer keys.
    fn of(segment: &AttentionSegment) -> impl Iterator<Item = Self> + use<> {
        let slots: Vec<u32> = segment.keys.iter().cloned().flatten().map(|slot| slot as u32).collect();
        let (queries, before) = (segment.queries.clone(), slots.len() - segment.queries.len());
        queries.clone().step_by(BLOCK).map(move |start| {
            let end = queries.end.min(start + BLOCK);
            Self { queries: start..end, slots: slots[..before + end - queries.start].to_vec() }
        })
    }
}

/// The largest numbers of queries and of keys.
fn longest(rows: &[CachedQueries]) -> (usize, usize) {
    rows.iter().fold((0, 0), |(q, k), row| (q.max(row.queries.len()), k.max(row.slots.len())))
}

/// The rows, in order, in parts whose padded scores number at most [`SCORES`], or in single rows.
fn within_scores(rows: &[CachedQueries], heads: usize) -> Vec<&[CachedQueries]> {
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

/// Zero where a query sees a key, far below any score elsewhere: `[n, 1, Q, K]`, in [`AttentionHeads::products`].
/// `visible` holds, for each of the `n Q` queries, the keys of its row that it sees. Two numbers per query go to the
/// device and are compared with the keys' indices there.
fn mask(
    visible: &[Range<usize>],
    (n, queries, keys): (usize, usize, usize),
    heads: AttentionHeads,
    device: &Device,
) -> Result<Tensor> {
    // Integers up to 2^24 are exact in f32.
    let of = |bound: fn(&Range<usize>) -> usize| {
        let bounds: Vec<f32> = visible.iter().map(|seen| bound(seen) as f32).collect();
        Tensor::from_vec(bounds, (n, 1, queries, 1), device)
    };
    let indices = Tensor::from_vec((0..keys).map(|key| key as f32).collect(), (1, 1, 1, keys), device)?;
    let started = of(|seen| seen.start)?.broadcast_le(&indices)?.to_dtype(DType::F32)?;
    let ended = of(|seen| seen.end)?.broadcast_le(&indices)?.to_dtype(DType::F32)?;
    (started - ended)?.affine(MASKED, -MASKED)?.to_dtype(heads.products)
}
