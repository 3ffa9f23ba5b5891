//! Attention of heads with so few features that a matrix product would cost more to set up than to run.
//!
//! A block holds as many queries as a vector has lanes, with one vector per feature, so that softmax along the keys is done
//! for all of them at once, without a sum across lanes. In the backward of keys and values, keys are the lanes: what a
//! block of queries found for each key is transposed. Each thread takes whole segments: bases with such heads are small.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::heads::AttentionHeads;
use crate::attention::lane_major::{HeadLanes, HeadRows, RopeLanes, blocks, lane_indices};
use crate::attention::lane_transpose::{FEATURES, HeadRow, Lanes, transpose_square};
use crate::layer::rope::RopeTable;
use crate::vector_math::exp_of_negative;
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use lorakit_lora::kernels::uninit_vec::uninit_vec;
use rayon::prelude::*;
use std::ops::Range;

/// What weights, and the gradients of outputs, are multiplied by until sums over them are complete. Where scores are tens
/// apart, weights or their products with gradients would be denormal, and an instruction that meets a denormal number takes
/// some hundred times as long. Powers of two change no digit of any other result while sums stay below 2^64;
/// gradients that large are those of a training that has diverged.
const WEIGHT_SCALE: f32 = (1u64 << 40) as f32;
const GRADIENT_SCALE: f32 = (1u64 << 24) as f32;

/// The widest heads that are faster without matrix products, in groups of features.
const WIDEST: usize = 2;

/// Whether such heads are handled here.
pub(super) fn supports(heads: &AttentionHeads) -> bool {
    let is_narrow = heads.features <= WIDEST * FEATURES && heads.features.is_multiple_of(FEATURES);
    is_narrow && heads.causal && heads.soft_cap.is_none()
}

/// The outputs, `[tokens, queries * features]`, zero in blocks of queries of which none is wanted.
pub(super) fn attend(batch: SmallHeads) -> Vec<f32> {
    let width = batch.heads.queries * batch.heads.features;
    by_segment(batch, width, |segment, out| match batch.heads.features / FEATURES {
        1 => simd::dispatch(Attend::<1> { segment, out }),
        _ => simd::dispatch(Attend::<WIDEST> { segment, out }),
    })
}

/// The gradient of `qkv` from that of the outputs, which is zero where they are not wanted.
pub(super) fn attend_backward(batch: SmallHeads, dy: &[f32]) -> Vec<f32> {
    let width = batch.heads.queries * batch.heads.features;
    by_segment(batch, batch.heads.fused_width(), |segment, dqkv| {
        let dout = &dy[segment.tokens.start * width..segment.tokens.end * width];
        match batch.heads.features / FEATURES {
            1 => simd::dispatch(AttendBackward::<1> { segment, dout, dqkv }),
            _ => simd::dispatch(AttendBackward::<WIDEST> { segment, dout, dqkv }),
        }
    })
}

/// The queries, keys and values of a batch.
#[derive(Clone, Copy)]
pub(super) struct SmallHeads<'a> {
    pub(super) heads: &'a AttentionHeads,
    pub(super) layout: &'a AttentionLayout,
    /// Whether the output of each token is wanted; None if all are.
    pub(super) wanted: Option<&'a [bool]>,
    /// `[tokens, fused width]`.
    pub(super) qkv: &'a [f32],
}

/// What `write` sets for each segment, `[tokens, width]`; zeros where there is no segment.
///
/// # Panics
/// If the segments are not in order: a bug of the caller.
fn by_segment<'a>(batch: SmallHeads<'a>, width: usize, write: impl Fn(SegmentRows<'a>, &mut [f32]) + Sync) -> Vec<f32> {
    let SmallHeads { heads, layout, wanted, qkv } = batch;
    let fused = heads.fused_width();
    let write_all = |all: &mut [f32]| {
        let (mut rest, mut start, mut parts) = (all, 0, Vec::with_capacity(layout.segments.len()));
        for segment in layout.segments.iter() {
            let tokens = segment.queries.clone();
            let (before, others) = rest.split_at_mut((tokens.start - start) * width);
            before.fill(0.0);
            let (own, others) = others.split_at_mut(tokens.len() * width);
            (rest, start) = (others, tokens.end);
            let qkv = &qkv[tokens.start * fused..tokens.end * fused];
            let wanted = wanted.map(|wanted| &wanted[tokens.clone()]);
            parts.push((SegmentRows { heads, rope: &layout.rope, tokens, wanted, qkv }, own));
        }
        rest.fill(0.0);
        parts.into_par_iter().for_each(|(segment, own)| write(segment, own));
    };
    // SAFETY: `write` sets the rows of each segment, head by head, and all others are filled.
    unsafe { uninit_vec(qkv.len() / fused * width, write_all) }
}

/// One sequence of a batch, which attends to itself.
struct SegmentRows<'a> {
    heads: &'a AttentionHeads,
    rope: &'a RopeTable,
    tokens: Range<usize>,
    /// Whether the output of each of its tokens is wanted; None if all are.
    wanted: Option<&'a [bool]>,
    /// `[tokens, fused width]`.
    qkv: &'a [f32],
}

/// Sets the outputs of a segment, `[tokens, queries * features]`.
struct Attend<'a, const GROUPS: usize> {
    segment: SegmentRows<'a>,
    out: &'a mut [f32],
}

/// Sets the gradient of a segment's `qkv`, `[tokens, fused width]`, from that of its outputs.
struct AttendBackward<'a, const GROUPS: usize> {
    segment: SegmentRows<'a>,
    dout: &'a [f32],
    dqkv: &'a mut [f32],
}

/// The inner product of a row with every lane.
#[inline(always)]
fn inner_product<S: Simd, const GROUPS: usize>(simd: S, row: &HeadRow<GROUPS>, lanes: &Lanes<S, GROUPS>) -> S::f32s {
    let mut product = simd.splat_f32s(0.0);
    for (values, lanes) in row.iter().zip(lanes) {
        // Two sums, so that additions do not wait for each other.
        let (mut even, mut odd) = (product, simd.splat_f32s(0.0));
        for feature in 0..FEATURES / 2 {
            even = simd.mul_add_e_f32s(simd.splat_f32s(values[2 * feature]), lanes[2 * feature], even);
            odd = simd.mul_add_e_f32s(simd.splat_f32s(values[2 * feature + 1]), lanes[2 * feature + 1], odd);
        }
        product = simd.add_f32s(even, odd);
    }
    product
}

/// Adds a row, times its weight in every lane, to `sums`.
#[inline(always)]
fn add_weighted<S: Simd, const GROUPS: usize>(
    simd: S,
    weight: S::f32s,
    row: &HeadRow<GROUPS>,
    sums: &mut Lanes<S, GROUPS>,
) {
    for (values, sums) in row.iter().zip(sums) {
        for feature in 0..FEATURES {
            sums[feature] = simd.mul_add_e_f32s(weight, simd.splat_f32s(values[feature]), sums[feature]);
        }
    }
}

/// Where a query of a block sees no key that others see: each sees one key more than the one before, and with a window
/// loses one.
#[derive(Clone, Copy)]
struct Edge<S: Simd> {
    /// The index of each lane.
    indices: S::f32s,
    /// The first query of the block.
    start: f32,
    window: Option<f32>,
}

impl<S: Simd> Edge<S> {
    #[inline(always)]
    fn new(simd: S, heads: &AttentionHeads) -> Self {
        Self { indices: lane_indices(simd), start: 0.0, window: heads.window.map(|window| window as f32) }
    }

    /// `values` in the lanes of queries that see a key, `hidden` in the others.
    #[inline(always)]
    fn seen(self, simd: S, key: usize, values: S::f32s, hidden: S::f32s) -> S::f32s {
        let (indices, from) = (self.indices, key as f32 - self.start);
        let values = simd.select_f32s(simd.less_than_f32s(indices, simd.splat_f32s(from)), hidden, values);
        match self.window {
            Some(window) => {
                let to = simd.splat_f32s(from + window);
                simd.select_f32s(simd.less_than_f32s(indices, to), values, hidden)
            }
            None => values,
        }
    }
}

/// A block of queries, with the softmax of their scores for every key that any of them sees.
struct QueryBlock<S: Simd> {
    queries: Range<usize>,
    /// The keys that any of the queries sees: with whether some do not.
    seen: [(Range<usize>, bool); 3],
    edge: Edge<S>,
    /// The first key that has a place: places begin and end with a block of keys.
    first: usize,
    /// `[places]`, zero where a query does not see a key, and not yet divided by each query's sum.
    weights: Vec<S::f32s>,
    /// The inverse of each query's sum, times [`WEIGHT_SCALE`].
    inverse: S::f32s,
}

impl<S: Simd> QueryBlock<S> {
    #[inline(always)]
    fn new(simd: S, heads: &AttentionHeads) -> Self {
        let (edge, inverse) = (Edge::new(simd, heads), simd.splat_f32s(0.0));
        Self { queries: 0..0, seen: Default::default(), edge, first: 0, weights: Vec::new(), inverse }
    }

    /// Computes the weights of `queries` from their scaled lanes.
    #[inline(always)]
    fn compute<const GROUPS: usize>(
        &mut self,
        simd: S,
        (heads, queries): (&AttentionHeads, Range<usize>),
        lanes: &Lanes<S, GROUPS>,
        keys: &HeadRows<GROUPS>,
    ) {
        self.see(simd, heads, queries);
        let (lanes, first, edge) = (*lanes, self.first, self.edge);
        let [unseen, zero] = [f32::NEG_INFINITY, 0.0].map(|value| simd.splat_f32s(value));
        let mut largest = unseen;
        for (seen, is_edge) in self.seen.clone() {
            let weights = &mut self.weights[seen.start - first..seen.end - first];
            for ((key, row), weight) in seen.clone().zip(keys.at(seen)).zip(weights) {
                let score = inner_product(simd, row, &lanes);
                *weight = if is_edge { edge.seen(simd, key, score, unseen) } else { score };
                largest = simd.max_f32s(largest, *weight);
            }
        }
        let mut sum = zero;
        for (seen, is_edge) in self.seen.clone() {
            let weights = &mut self.weights[seen.start - first..seen.end - first];
            for (key, weight) in seen.zip(weights) {
                let exp = exp_of_negative(simd, simd.sub_f32s(*weight, largest));
                *weight = if is_edge { edge.seen(simd, key, exp, zero) } else { exp };
                sum = simd.add_f32s(sum, *weight);
            }
        }
        self.inverse = simd.div_f32s(simd.splat_f32s(WEIGHT_SCALE), sum);
    }

    /// Finds the keys that `queries` see, and makes places for their weights.
    #[inline(always)]
    fn see(&mut self, simd: S, heads: &AttentionHeads, queries: Range<usize>) {
        let [first, last] = [queries.start, queries.end - 1].map(|query| heads.visible(query, 0, 0));
        // All queries see the keys between the start of the last one's and the end of the first one's.
        let by_all = last.start..first.end.max(last.start);
        self.seen = [(first.start..by_all.start, true), (by_all.clone(), false), (by_all.end..last.end, true)];
        self.edge.start = queries.start as f32;
        self.first = first.start / S::F32_LANES * S::F32_LANES;
        self.queries = queries;
        let (_, places) = self.keys();
        resize_weights(simd, &mut self.weights, last.end.next_multiple_of(S::F32_LANES) - self.first, places);
    }

    /// The keys that any of the queries sees, and the place of each one's weights.
    #[inline(always)]
    fn keys(&self) -> (Range<usize>, Range<usize>) {
        let seen = self.seen[0].0.start..self.seen[2].0.end;
        (seen.clone(), seen.start - self.first..seen.end - self.first)
    }
}

/// Resizes to `count`, zeroing all but `set`, which the caller fills.
#[inline(always)]
fn resize_weights<S: Simd>(simd: S, weights: &mut Vec<S::f32s>, count: usize, set: Range<usize>) {
    let zero = simd.splat_f32s(0.0);
    weights.resize(count, zero);
    weights[..set.start].fill(zero);
    weights[set.end..].fill(zero);
}

impl SegmentRows<'_> {
    fn count(&self) -> usize {
        self.tokens.len()
    }

    /// Reads head `number` of all: queries, then keys, then values.
    #[inline(always)]
    fn read<S: Simd, const GROUPS: usize>(&self, simd: S, number: usize, rows: &mut HeadRows<GROUPS>) {
        rows.read(simd, self.qkv, self.heads.fused_width(), number * GROUPS * FEATURES);
    }

    /// The blocks of its queries, with whether any output of each is wanted.
    #[inline(always)]
    fn blocks<S: Simd>(&self) -> impl Iterator<Item = (Range<usize>, bool)> {
        let is_wanted =
            |queries: &Range<usize>| self.wanted.is_none_or(|wanted| wanted[queries.clone()].contains(&true));
        blocks::<S>(self.count()).map(move |queries| (queries.clone(), is_wanted(&queries)))
    }

    /// The rotation of its tokens.
    #[inline(always)]
    fn rope<S: Simd, const GROUPS: usize>(&self, simd: S) -> RopeLanes<S, GROUPS> {
        let (cosines, sines, pairs) = self.rope.of(self.tokens.clone());
        RopeLanes::new(simd, cosines, sines, pairs)
    }
}

impl<const GROUPS: usize> WithSimd for Attend<'_, GROUPS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { segment, out } = self;
        let heads = segment.heads;
        let (rope, mut block) = (segment.rope(simd), QueryBlock::<S>::new(simd, segment.heads));
        let [mut rows, mut keys, mut values] = [(); 3].map(|()| HeadRows::<GROUPS>::new());
        let mut lanes = HeadLanes::new();
        for key_head in 0..heads.keys {
            segment.read(simd, heads.queries + key_head, &mut keys);
            lanes.read(simd, &keys);
            lanes.rotate(simd, &rope, false);
            keys.read_lanes(simd, &lanes);
            segment.read(simd, heads.queries + heads.keys + key_head, &mut values);
            for head in key_head * heads.shared()..(key_head + 1) * heads.shared() {
                segment.read(simd, head, &mut rows);
                lanes.read(simd, &rows);
                lanes.rotate(simd, &rope, false);
                lanes.scale(simd, heads.kernel_scale());
                for (number, (queries, is_wanted)) in segment.blocks::<S>().enumerate() {
                    let mut sums = [[simd.splat_f32s(0.0); FEATURES]; GROUPS];
                    if is_wanted {
                        block.compute(simd, (heads, queries), lanes.block(number), &keys);
                        let (seen, places) = block.keys();
                        for (&weight, value) in block.weights[places].iter().zip(values.at(seen)) {
                            add_weighted(simd, simd.mul_f32s(weight, block.inverse), value, &mut sums);
                        }
                    }
                    // The queries of this block are not needed any more.
                    *lanes.block_mut(number) = sums;
                }
                lanes.scale(simd, 1.0 / WEIGHT_SCALE);
                rows.read_lanes(simd, &lanes);
                rows.write(out, heads.queries * GROUPS * FEATURES, head * GROUPS * FEATURES);
            }
        }
    }
}

/// The keys and values of a key head with their gradients.
struct KeyHead<S: Simd, const GROUPS: usize> {
    keys: HeadRows<GROUPS>,
    values: HeadRows<GROUPS>,
    dk: HeadLanes<S, GROUPS>,
    dv: HeadLanes<S, GROUPS>,
}

/// A query head with the gradient of its outputs; the lanes of the queries become those of their gradient.
struct QueryHead<S: Simd, const GROUPS: usize> {
    rows: HeadRows<GROUPS>,
    lanes: HeadLanes<S, GROUPS>,
    /// Times [`GRADIENT_SCALE`].
    dout_rows: HeadRows<GROUPS>,
    dout: HeadLanes<S, GROUPS>,
    /// `dS` of a block of queries, in the places of their weights.
    ds: Vec<S::f32s>,
}

impl<S: Simd, const GROUPS: usize> QueryHead<S, GROUPS> {
    /// The gradient of a block of queries, still rotated and not yet scaled, in place of their lanes; what it adds to the
    /// gradients of keys, still rotated, and of values is added. All are times [`WEIGHT_SCALE`] and [`GRADIENT_SCALE`].
    #[inline(always)]
    fn backward(&mut self, simd: S, number: usize, block: &mut QueryBlock<S>, kv: &mut KeyHead<S, GROUPS>) {
        let (seen, places) = block.keys();
        let (zero, dout) = (simd.splat_f32s(0.0), *self.dout.block(number));
        resize_weights(simd, &mut self.ds, block.weights.len(), places.clone());
        let mut row_dot = zero;
        let weights = block.weights[places.clone()].iter_mut().zip(&mut self.ds[places.clone()]);
        for ((weight, ds), value) in weights.zip(kv.values.at(seen.clone())) {
            *weight = simd.mul_f32s(*weight, block.inverse);
            *ds = inner_product(simd, value, &dout);
            row_dot = simd.mul_add_e_f32s(*weight, *ds, row_dot);
        }
        let row_dot = simd.mul_f32s(row_dot, simd.splat_f32s(1.0 / WEIGHT_SCALE));
        let mut dq = [[zero; FEATURES]; GROUPS];
        let weights = block.weights[places.clone()].iter().zip(&mut self.ds[places]);
        for ((&weight, ds), key) in weights.zip(kv.keys.at(seen)) {
            *ds = simd.mul_f32s(weight, simd.sub_f32s(*ds, row_dot));
            add_weighted(simd, *ds, key, &mut dq);
        }
        *self.lanes.block_mut(number) = dq;
        // With keys as lanes, a query's row is added to all keys of a block at once.
        let tiles = block.weights.chunks_exact_mut(S::F32_LANES).zip(self.ds.chunks_exact_mut(S::F32_LANES));
        for (tile, (weights, ds)) in tiles.enumerate() {
            let keys = block.first / S::F32_LANES + tile;
            for (square, rows, gradient) in [(weights, &self.dout_rows, &mut kv.dv), (ds, &self.rows, &mut kv.dk)] {
                transpose_square(simd, square);
                let mut sums = *gradient.block(keys);
                for (&weights, row) in square.iter().zip(rows.at(block.queries.clone())) {
                    add_weighted(simd, weights, row, &mut sums);
                }
                *gradient.block_mut(keys) = sums;
            }
        }
    }
}

impl<const GROUPS: usize> WithSimd for AttendBackward<'_, GROUPS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { segment, dout, dqkv } = self;
        let (heads, count, fused) = (segment.heads, segment.count(), segment.heads.fused_width());
        let (features, unscale) = (GROUPS * FEATURES, 1.0 / (WEIGHT_SCALE * GRADIENT_SCALE));
        let (rope, mut block) = (segment.rope(simd), QueryBlock::<S>::new(simd, segment.heads));
        let mut kv =
            KeyHead { keys: HeadRows::new(), values: HeadRows::new(), dk: HeadLanes::new(), dv: HeadLanes::new() };
        let mut query = QueryHead::<S, GROUPS> {
            rows: HeadRows::new(),
            lanes: HeadLanes::new(),
            dout_rows: HeadRows::new(),
            dout: HeadLanes::new(),
            ds: Vec::new(),
        };
        for key_head in 0..heads.keys {
            let [key_number, value_number] = [heads.queries + key_head, heads.queries + heads.keys + key_head];
            segment.read(simd, key_number, &mut kv.keys);
            kv.dk.read(simd, &kv.keys);
            kv.dk.rotate(simd, &rope, false);
            kv.keys.read_lanes(simd, &kv.dk);
            segment.read(simd, value_number, &mut kv.values);
            kv.dk.clear(simd, count);
            kv.dv.clear(simd, count);
            for head in key_head * heads.shared()..(key_head + 1) * heads.shared() {
                segment.read(simd, head, &mut query.rows);
                query.lanes.read(simd, &query.rows);
                query.lanes.rotate(simd, &rope, false);
                query.lanes.scale(simd, heads.kernel_scale());
                query.rows.read_lanes(simd, &query.lanes);
                query.dout_rows.read(simd, dout, heads.queries * features, head * features);
                query.dout.read(simd, &query.dout_rows);
                query.dout.scale(simd, GRADIENT_SCALE);
                query.dout_rows.read_lanes(simd, &query.dout);
                for (number, (queries, is_wanted)) in segment.blocks::<S>().enumerate() {
                    if !is_wanted {
                        *query.lanes.block_mut(number) = [[simd.splat_f32s(0.0); FEATURES]; GROUPS];
                        continue;
                    }
                    block.compute(simd, (heads, queries), query.lanes.block(number), &kv.keys);
                    query.backward(simd, number, &mut block, &mut kv);
                }
                query.lanes.scale(simd, unscale);
                query.lanes.rotate(simd, &rope, true);
                query.lanes.scale(simd, heads.kernel_scale());
                query.rows.read_lanes(simd, &query.lanes);
                query.rows.write(dqkv, fused, head * features);
            }
            kv.dk.scale(simd, unscale);
            kv.dk.rotate(simd, &rope, true);
            kv.dv.scale(simd, unscale);
            for (gradient, number) in [(&kv.dk, key_number), (&kv.dv, value_number)] {
                kv.keys.read_lanes(simd, gradient);
                kv.keys.write(dqkv, fused, number * features);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::rope_config::{RopeConfig, RopeScaling};
    use crate::layer::rope::RopeFrequencies;
    use lorakit_lora::kernels::simd::SimdLevel;

    const TOKENS: usize = 21;

    fn values(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * step) % 101) as f32 / 50.0 - 1.0).collect()
    }

    /// What is asked of one segment.
    #[derive(Clone, Copy)]
    struct Case<'a> {
        heads: &'a AttentionHeads,
        /// The first feature of the last query.
        last: f32,
        /// What queries, and the gradients of outputs, are multiplied by.
        factors: [f32; 2],
        /// The tokens whose outputs have a gradient, if not all.
        used: Option<&'a [bool]>,
        /// Whether the others are left out.
        skips: bool,
    }

    impl<'a> Case<'a> {
        fn all(heads: &'a AttentionHeads, last: f32) -> Self {
            Self { heads, last, factors: [1.0; 2], used: None, skips: false }
        }

        /// Forward and backward with the vectors of `simd`.
        fn of<S: Simd>(self, simd: S) -> [Vec<f32>; 2] {
            let heads = self.heads;
            let rope = RopeConfig { theta: 10_000.0, features: heads.features, scaling: RopeScaling::None };
            let positions: Vec<u32> = (0..TOKENS as u32).collect();
            let rope = RopeFrequencies::new(&rope).angles(&positions);
            let width = heads.queries * heads.features;
            let (mut qkv, mut dout) = (values(TOKENS * heads.fused_width(), 37), values(TOKENS * width, 53));
            qkv[(TOKENS - 1) * heads.fused_width()] = self.last;
            let queries = qkv.chunks_exact_mut(heads.fused_width()).flat_map(|token| &mut token[..width]);
            queries.for_each(|value| *value *= self.factors[0]);
            dout.iter_mut().for_each(|value| *value *= self.factors[1]);
            let unused = dout.chunks_exact_mut(width).zip(self.used.unwrap_or(&[])).filter(|(_, used)| !**used);
            unused.for_each(|(token, _)| token.fill(0.0));
            let mut results = [vec![0.0; dout.len()], vec![0.0; qkv.len()]];
            let [out, dqkv] = &mut results;
            let (dout, wanted) = (dout.as_slice(), self.used.filter(|_| self.skips));
            let segment = || SegmentRows { heads, rope: &rope, tokens: 0..TOKENS, wanted, qkv: &qkv };
            if heads.features == FEATURES {
                simd.vectorize(Attend::<1> { segment: segment(), out });
                simd.vectorize(AttendBackward::<1> { segment: segment(), dout, dqkv });
            } else {
                simd.vectorize(Attend::<WIDEST> { segment: segment(), out });
                simd.vectorize(AttendBackward::<WIDEST> { segment: segment(), dout, dqkv });
            }
            results
        }
    }

    /// With the vectors of a level.
    impl WithSimd for Case<'_> {
        type Output = [Vec<f32>; 2];

        fn with_simd<S: Simd>(self, simd: S) -> [Vec<f32>; 2] {
            self.of(simd)
        }
    }

    #[test]
    fn vectors_of_every_width_agree() {
        for (window, features) in [(None, 16), (Some(5), 16), (Some(1), 16), (None, 8), (Some(7), 8)] {
            let heads = AttentionHeads { window, ..AttentionHeads::new(4, 2, features) };
            let case = Case::all(&heads, 0.5);
            let one = case.of(pulp::Scalar);
            for wide in [case.of(pulp::Scalar128b), case.of(pulp::Scalar256b), case.of(pulp::Scalar512b)] {
                for (one, wide) in one.iter().zip(&wide) {
                    assert!(one.iter().any(|value| value.abs() > 0.1));
                    assert!(one.iter().zip(wide).all(|(a, b)| (a - b).abs() < 1e-5), "window {window:?}");
                }
            }
        }
    }

    /// Scores up to hundreds apart, and gradients of two sizes: with denormal numbers digits would be lost, and time.
    #[test]
    fn weights_and_gradients_far_below_one_keep_their_digits() {
        let heads = AttentionHeads::new(4, 2, 8);
        for level in SimdLevel::available() {
            let of = |factor| level.dispatch(Case { factors: [100.0, factor], ..Case::all(&heads, 0.5) });
            let ([_, large], [_, small]) = (of(1.0), of(TINY));
            assert!(large.iter().any(|value| *value != 0.0 && value.abs() < 1e-20), "{level:?}");
            let pairs = large.iter().zip(&small).filter(|(large, _)| (*large * TINY).is_normal());
            assert!(pairs.clone().count() > large.len() / 2);
            pairs.for_each(|(large, small)| assert_eq!((large * TINY).to_bits(), small.to_bits(), "{level:?}"));
        }
    }

    const TINY: f32 = 1.0 / (1u64 << 20) as f32;

    #[test]
    fn queries_that_are_left_out_change_no_bit() {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        for (window, features, first) in [(None, 8, 0), (None, 8, 17), (Some(5), 16, 17), (Some(40), 8, 9)] {
            let heads = AttentionHeads { window, ..AttentionHeads::new(4, 2, features) };
            // The blocks before the first used token are left out.
            let used: Vec<bool> = (0..TOKENS).map(|token| token >= first && token % 3 != 1).collect();
            for level in SimdLevel::available() {
                let of = |skips| level.dispatch(Case { used: Some(&used), skips, ..Case::all(&heads, 0.5) });
                let ([all, dqkv], [some, own]) = (of(false), of(true));
                assert!(dqkv.iter().any(|value| value.abs() > 0.1));
                assert_eq!(bits(&dqkv), bits(&own), "{level:?}, window {window:?}, from {first}");
                let width = heads.queries * features;
                let rows = all.chunks(width).zip(some.chunks(width)).zip(&used);
                rows.filter(|(_, used)| **used).for_each(|((all, some), _)| assert_eq!(bits(all), bits(some)));
                // There are whole vectors of queries before token 17 at any width.
                assert!(first < 17 || some[..width].iter().all(|value| *value == 0.0));
            }
        }
    }

    /// Training stops an expert whose loss is NaN, so that no kernel may drop one.
    #[test]
    fn nan_is_kept_by_vectors_of_every_width() {
        let heads = AttentionHeads::new(4, 2, 8);
        for last in [f32::NAN, f32::INFINITY] {
            let case = Case::all(&heads, last);
            for [out, _] in [case.of(pulp::Scalar), case.of(pulp::Scalar256b)] {
                let of_last = &out[(TOKENS - 1) * heads.queries * heads.features..];
                assert!(of_last[..heads.features].iter().all(|value| value.is_nan()), "{last}: {of_last:?}");
                assert!(out[..out.len() - of_last.len()].iter().all(|value| value.is_finite()));
            }
            let [out, _] = simd::dispatch(case);
            assert!(out[(TOKENS - 1) * heads.queries * heads.features].is_nan());
        }
    }
}
