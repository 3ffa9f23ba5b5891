//! Attention of heads with so few features that a matrix product would cost more to set up than to run.
//!
//! A block holds as many queries as a vector has lanes, with one vector per feature, so that softmax along the keys is done
//! for all of them at once, without a sum across lanes. In the backward of keys and values, keys are the lanes: what a
//! block of queries found for each key is transposed. Each thread takes whole segments: bases with such heads are small.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::heads::AttentionHeads;
use crate::attention::lane_major::{HeadLanes, HeadRows, RopeLanes, blocks, lane_indices};
use crate::attention::lane_transpose::{FEATURES, Lanes, Row, transpose_square};
use crate::layer::rope::RopeTable;
use crate::vector_math::exp_lanes;
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// The widest heads that are faster without matrix products, in groups of features.
const WIDEST: usize = 2;

/// Whether such heads are handled here.
pub(super) fn supports(heads: &AttentionHeads) -> bool {
    let is_narrow = heads.features <= WIDEST * FEATURES && heads.features.is_multiple_of(FEATURES);
    is_narrow && heads.causal && heads.soft_cap.is_none()
}

/// The outputs, `[tokens, queries * features]`, of `qkv`, `[tokens, fused width]`.
pub(super) fn attend(heads: &AttentionHeads, layout: &AttentionLayout, qkv: &[f32]) -> Vec<f32> {
    let width = heads.queries * heads.features;
    by_segment(heads, layout, qkv, width, |segment, out| match heads.features / FEATURES {
        1 => simd::dispatch(Attend::<1> { segment, out }),
        _ => simd::dispatch(Attend::<WIDEST> { segment, out }),
    })
}

/// The gradient of `qkv` from that of the outputs.
pub(super) fn attend_backward(heads: &AttentionHeads, layout: &AttentionLayout, qkv: &[f32], dy: &[f32]) -> Vec<f32> {
    let width = heads.queries * heads.features;
    by_segment(heads, layout, qkv, heads.fused_width(), |segment, dqkv| {
        let dout = &dy[segment.tokens.start * width..segment.tokens.end * width];
        match heads.features / FEATURES {
            1 => simd::dispatch(AttendBackward::<1> { segment, dout, dqkv }),
            _ => simd::dispatch(AttendBackward::<WIDEST> { segment, dout, dqkv }),
        }
    })
}

/// What `write` sets for each segment, `[tokens, width]`.
///
/// # Panics
/// If the segments are not in order: a bug of the caller.
fn by_segment<'a>(
    heads: &'a AttentionHeads,
    layout: &'a AttentionLayout,
    qkv: &'a [f32],
    width: usize,
    write: impl Fn(SegmentRows<'a>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let fused = heads.fused_width();
    let mut all = vec![0.0; qkv.len() / fused * width];
    let (mut rest, mut start, mut parts) = (all.as_mut_slice(), 0, Vec::with_capacity(layout.segments.len()));
    for segment in layout.segments.iter() {
        let tokens = segment.queries.clone();
        let (own, others) = rest[(tokens.start - start) * width..].split_at_mut(tokens.len() * width);
        (rest, start) = (others, tokens.end);
        let qkv = &qkv[tokens.start * fused..tokens.end * fused];
        parts.push((SegmentRows { heads, rope: &layout.rope, tokens, qkv }, own));
    }
    parts.into_par_iter().for_each(|(segment, own)| write(segment, own));
    all
}

/// One sequence of a batch, which attends to itself.
struct SegmentRows<'a> {
    heads: &'a AttentionHeads,
    rope: &'a RopeTable,
    tokens: Range<usize>,
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
fn inner_product<S: Simd, const GROUPS: usize>(simd: S, row: &Row<GROUPS>, lanes: &Lanes<S, GROUPS>) -> S::f32s {
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
    row: &Row<GROUPS>,
    sums: &mut Lanes<S, GROUPS>,
) {
    for (values, sums) in row.iter().zip(sums) {
        for feature in 0..FEATURES {
            sums[feature] = simd.mul_add_e_f32s(weight, simd.splat_f32s(values[feature]), sums[feature]);
        }
    }
}

/// `values` in lanes whose index is at least `from` and less than `to`, `hidden` in the others.
#[inline(always)]
fn within<S: Simd>(simd: S, indices: S::f32s, [from, to]: [f32; 2], values: S::f32s, hidden: S::f32s) -> S::f32s {
    let values = simd.select_f32s(simd.less_than_f32s(indices, simd.splat_f32s(from)), hidden, values);
    simd.select_f32s(simd.less_than_f32s(indices, simd.splat_f32s(to)), values, hidden)
}

/// Where a query of a block sees no key that others see: each sees one key more than the one before, and with a window
/// loses one.
#[derive(Clone, Copy, Default)]
struct Edge {
    /// The first query of the block.
    start: f32,
    window: f32,
}

impl Edge {
    /// The queries of the block that see a key: the first, and the one after the last.
    #[inline(always)]
    fn seen_by(self, key: usize) -> [f32; 2] {
        let from = key as f32 - self.start;
        [from, from + self.window]
    }
}

/// A block of queries, with the softmax of their scores for every key that any of them sees.
struct QueryBlock<S: Simd> {
    queries: Range<usize>,
    /// The keys that any of the queries sees: with whether some do not.
    seen: [(Range<usize>, bool); 3],
    edge: Edge,
    /// The first key that has a place: places begin and end with a block of keys.
    first: usize,
    /// `[places]`, zero where a query does not see a key, and not yet divided by each query's sum.
    weights: Vec<S::f32s>,
    /// The inverse of each query's sum.
    inverse: S::f32s,
}

impl<S: Simd> QueryBlock<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        let zero = simd.splat_f32s(0.0);
        Self {
            queries: 0..0,
            seen: Default::default(),
            edge: Edge::default(),
            first: 0,
            weights: Vec::new(),
            inverse: zero,
        }
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
        let (lanes, first, indices, edge) = (*lanes, self.first, lane_indices(simd), self.edge);
        let [unseen, zero] = [f32::NEG_INFINITY, 0.0].map(|value| simd.splat_f32s(value));
        let mut largest = unseen;
        for (seen, is_edge) in self.seen.clone() {
            let weights = &mut self.weights[seen.start - first..seen.end - first];
            for ((key, row), weight) in seen.clone().zip(keys.at(seen)).zip(weights) {
                let score = inner_product(simd, row, &lanes);
                *weight = if is_edge { within(simd, indices, edge.seen_by(key), score, unseen) } else { score };
                largest = simd.max_f32s(largest, *weight);
            }
        }
        let mut sum = zero;
        for (seen, is_edge) in self.seen.clone() {
            let weights = &mut self.weights[seen.start - first..seen.end - first];
            for (key, weight) in seen.zip(weights) {
                let exp = exp_lanes(simd, simd.sub_f32s(*weight, largest));
                *weight = if is_edge { within(simd, indices, edge.seen_by(key), exp, zero) } else { exp };
                sum = simd.add_f32s(sum, *weight);
            }
        }
        self.inverse = simd.div_f32s(simd.splat_f32s(1.0), sum);
    }

    /// Finds the keys that `queries` see, and makes places for their weights.
    #[inline(always)]
    fn see(&mut self, simd: S, heads: &AttentionHeads, queries: Range<usize>) {
        let [first, last] = [queries.start, queries.end - 1].map(|query| heads.visible(query, 0, 0));
        // All queries see the keys between the start of the last one's and the end of the first one's.
        let by_all = last.start..first.end.max(last.start);
        self.seen = [(first.start..by_all.start, true), (by_all.clone(), false), (by_all.end..last.end, true)];
        let window = heads.window.map_or(f32::INFINITY, |window| window as f32);
        self.edge = Edge { start: queries.start as f32, window };
        self.first = first.start / S::F32_LANES * S::F32_LANES;
        self.queries = queries;
        self.weights.clear();
        self.weights.resize(last.end.next_multiple_of(S::F32_LANES) - self.first, simd.splat_f32s(0.0));
    }

    /// The keys that any of the queries sees, and the place of each one's weights.
    #[inline(always)]
    fn keys(&self) -> (Range<usize>, Range<usize>) {
        let seen = self.seen[0].0.start..self.seen[2].0.end;
        (seen.clone(), seen.start - self.first..seen.end - self.first)
    }
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

    /// The rotation of its tokens.
    #[inline(always)]
    fn rope<S: Simd>(&self, simd: S) -> RopeLanes<S> {
        let (cosines, sines, pairs) = self.rope.of(self.tokens.clone());
        RopeLanes::new(simd, cosines, sines, pairs)
    }
}

impl<const GROUPS: usize> WithSimd for Attend<'_, GROUPS> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { segment, out } = self;
        let (heads, count) = (segment.heads, segment.count());
        let (rope, mut block) = (segment.rope(simd), QueryBlock::new(simd));
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
                for (number, queries) in blocks::<S>(count).enumerate() {
                    block.compute(simd, (heads, queries), lanes.block(number), &keys);
                    let mut sums = [[simd.splat_f32s(0.0); FEATURES]; GROUPS];
                    let (seen, places) = block.keys();
                    for (&weight, value) in block.weights[places].iter().zip(values.at(seen)) {
                        add_weighted(simd, simd.mul_f32s(weight, block.inverse), value, &mut sums);
                    }
                    // The queries of this block are not needed any more.
                    *lanes.block_mut(number) = sums;
                }
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
    dout_rows: HeadRows<GROUPS>,
    dout: HeadLanes<S, GROUPS>,
    /// `dS` of a block of queries, in the places of their weights.
    slopes: Vec<S::f32s>,
}

impl<S: Simd, const GROUPS: usize> QueryHead<S, GROUPS> {
    /// The gradient of a block of queries, still rotated and not yet scaled, in place of their lanes; what it adds to the
    /// gradients of keys, still rotated, and of values is added.
    #[inline(always)]
    fn backward(&mut self, simd: S, number: usize, block: &mut QueryBlock<S>, of: &mut KeyHead<S, GROUPS>) {
        let (seen, places) = block.keys();
        let (zero, dout) = (simd.splat_f32s(0.0), *self.dout.block(number));
        self.slopes.clear();
        self.slopes.resize(block.weights.len(), zero);
        let mut along = zero;
        let weights = block.weights[places.clone()].iter_mut().zip(&mut self.slopes[places.clone()]);
        for ((weight, slope), value) in weights.zip(of.values.at(seen.clone())) {
            *weight = simd.mul_f32s(*weight, block.inverse);
            *slope = inner_product(simd, value, &dout);
            along = simd.mul_add_e_f32s(*weight, *slope, along);
        }
        let mut dq = [[zero; FEATURES]; GROUPS];
        let weights = block.weights[places.clone()].iter().zip(&mut self.slopes[places]);
        for ((&weight, slope), key) in weights.zip(of.keys.at(seen)) {
            *slope = simd.mul_f32s(weight, simd.sub_f32s(*slope, along));
            add_weighted(simd, *slope, key, &mut dq);
        }
        *self.lanes.block_mut(number) = dq;
        // With keys as lanes, a query's row is added to all keys of a block at once.
        let tiles = block.weights.chunks_exact_mut(S::F32_LANES).zip(self.slopes.chunks_exact_mut(S::F32_LANES));
        for (tile, (weights, slopes)) in tiles.enumerate() {
            let keys = block.first / S::F32_LANES + tile;
            for (square, rows, gradient) in [(weights, &self.dout_rows, &mut of.dv), (slopes, &self.rows, &mut of.dk)] {
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
        let features = GROUPS * FEATURES;
        let (rope, mut block) = (segment.rope(simd), QueryBlock::new(simd));
        let mut of =
            KeyHead { keys: HeadRows::new(), values: HeadRows::new(), dk: HeadLanes::new(), dv: HeadLanes::new() };
        let mut own = QueryHead::<S, GROUPS> {
            rows: HeadRows::new(),
            lanes: HeadLanes::new(),
            dout_rows: HeadRows::new(),
            dout: HeadLanes::new(),
            slopes: Vec::new(),
        };
        for key_head in 0..heads.keys {
            let [key_number, value_number] = [heads.queries + key_head, heads.queries + heads.keys + key_head];
            segment.read(simd, key_number, &mut of.keys);
            of.dk.read(simd, &of.keys);
            of.dk.rotate(simd, &rope, false);
            of.keys.read_lanes(simd, &of.dk);
            segment.read(simd, value_number, &mut of.values);
            of.dk.clear(simd, count);
            of.dv.clear(simd, count);
            for head in key_head * heads.shared()..(key_head + 1) * heads.shared() {
                segment.read(simd, head, &mut own.rows);
                own.lanes.read(simd, &own.rows);
                own.lanes.rotate(simd, &rope, false);
                own.lanes.scale(simd, heads.kernel_scale());
                own.rows.read_lanes(simd, &own.lanes);
                own.dout_rows.read(simd, dout, heads.queries * features, head * features);
                own.dout.read(simd, &own.dout_rows);
                for (number, queries) in blocks::<S>(count).enumerate() {
                    block.compute(simd, (heads, queries), own.lanes.block(number), &of.keys);
                    own.backward(simd, number, &mut block, &mut of);
                }
                own.lanes.rotate(simd, &rope, true);
                own.lanes.scale(simd, heads.kernel_scale());
                own.rows.read_lanes(simd, &own.lanes);
                own.rows.write(dqkv, fused, head * features);
            }
            of.dk.rotate(simd, &rope, true);
            for (gradient, number) in [(&of.dk, key_number), (&of.dv, value_number)] {
                of.keys.read_lanes(simd, gradient);
                of.keys.write(dqkv, fused, number * features);
            }
        }
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::architecture::rope_config::{RopeConfig, RopeScaling};
    use crate::layer::rope::RopeFrequencies;

    const TOKENS: usize = 21;

    fn values(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * step) % 101) as f32 / 50.0 - 1.0).collect()
    }

    /// Forward and backward of one segment with the vectors of `simd`; the first feature of its last query is `last`.
    fn of<S: Simd>(simd: S, heads: &AttentionHeads, last: f32) -> [Vec<f32>; 2] {
        let rope = RopeConfig { theta: 10_000.0, features: heads.features, scaling: RopeScaling::None };
        let positions: Vec<u32> = (0..TOKENS as u32).collect();
        let rope_table = RopeFrequencies::new(&rope).angles(&positions);
        let (mut qkv, dout) =
            (values(TOKENS * heads.fused_width(), 37), values(TOKENS * heads.queries * heads.features, 53));
        qkv[(TOKENS - 1) * heads.fused_width()] = last;
        let mut results = [vec![0.0; dout.len()], vec![0.0; qkv.len()]];
        let [out, dqkv] = &mut results;
        let segment = || SegmentRows { heads, rope: &rope_table, tokens: 0..TOKENS, qkv: &qkv };
        if heads.features == FEATURES {
            simd.vectorize(Attend::<1> { segment: segment(), out });
            simd.vectorize(AttendBackward::<1> { segment: segment(), dout: &dout, dqkv });
        } else {
            simd.vectorize(Attend::<WIDEST> { segment: segment(), out });
            simd.vectorize(AttendBackward::<WIDEST> { segment: segment(), dout: &dout, dqkv });
        }
        results
    }

    #[test]
    fn vectors_of_every_width_agree() {
        for (window, features) in [(None, 16), (Some(5), 16), (Some(1), 16), (None, 8), (Some(7), 8)] {
            let heads = AttentionHeads { window, ..AttentionHeads::new(4, 2, features) };
            let one = of(pulp::Scalar, &heads, 0.5);
            let wider = [of(pulp::Scalar128b, &heads, 0.5), of(pulp::Scalar256b, &heads, 0.5)];
            for wide in wider.into_iter().chain([of(pulp::Scalar512b, &heads, 0.5)]) {
                for (one, wide) in one.iter().zip(&wide) {
                    assert!(one.iter().any(|value| value.abs() > 0.1));
                    assert!(one.iter().zip(wide).all(|(a, b)| (a - b).abs() < 1e-5), "window {window:?}");
                }
            }
        }
    }

    /// Training stops an expert whose loss is NaN, so that no kernel may drop one.
    #[test]
    fn nan_is_kept_by_vectors_of_every_width() {
        let heads = AttentionHeads::new(4, 2, 8);
        for last in [f32::NAN, f32::INFINITY] {
            for [out, _] in [of(pulp::Scalar, &heads, last), of(pulp::Scalar256b, &heads, last)] {
                let of_last = &out[(TOKENS - 1) * heads.queries * heads.features..];
                assert!(of_last[..heads.features].iter().all(|value| value.is_nan()), "{last}: {of_last:?}");
                assert!(out[..out.len() - of_last.len()].iter().all(|value| value.is_finite()));
            }
            let out = simd::dispatch(Forward(&heads, last));
            assert!(out[(TOKENS - 1) * heads.queries * heads.features].is_nan());
        }
    }

    /// With the vectors of this machine.
    struct Forward<'a>(&'a AttentionHeads, f32);

    impl WithSimd for Forward<'_> {
        type Output = Vec<f32>;

        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let [out, _] = of(simd, self.0, self.1);
            out
        }
    }
}
