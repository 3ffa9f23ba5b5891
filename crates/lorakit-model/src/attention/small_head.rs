//! Attention of heads with so few features that a matrix product would cost more to set up than to run.
//!
//! A block holds as many queries as a vector has lanes, with one vector per feature, so that softmax along the keys is done
//! for all of them at once, without a sum across lanes. In the backward of keys and values, keys are the lanes: the weights
//! are computed again there, which is cheaper than transposing them. Each thread takes whole segments: bases with such
//! heads are small.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::heads::AttentionHeads;
use crate::attention::lane_major::{FEATURES, HeadRows, LaneMajor, RopeLanes, blocks, lane_indices};
use crate::layer::rope::RopeTable;
use crate::vector_math::exp_lanes;
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use pulp::bytemuck::cast_slice;
use rayon::prelude::*;
use std::iter::Take;
use std::ops::Range;
use std::slice::Chunks;

/// The widest heads that are faster without matrix products.
const WIDEST: usize = 16;

/// Whether such heads are handled here.
pub(super) fn supports(heads: &AttentionHeads) -> bool {
    let is_narrow = heads.features <= WIDEST && heads.features.is_multiple_of(FEATURES);
    is_narrow && heads.causal && heads.soft_cap.is_none()
}

/// The outputs, `[tokens, queries * features]`, of `qkv`, `[tokens, fused width]`.
pub(super) fn attend(heads: &AttentionHeads, layout: &AttentionLayout, qkv: &[f32]) -> Vec<f32> {
    let width = heads.queries * heads.features;
    by_segment(heads, layout, qkv, width, |segment| simd::dispatch(Attend(segment)))
}

/// The gradient of `qkv` from that of the outputs.
pub(super) fn attend_backward(heads: &AttentionHeads, layout: &AttentionLayout, qkv: &[f32], dy: &[f32]) -> Vec<f32> {
    let width = heads.queries * heads.features;
    by_segment(heads, layout, qkv, heads.fused_width(), |segment| {
        let dy = &dy[segment.tokens.start * width..segment.tokens.end * width];
        simd::dispatch(AttendBackward(segment, dy))
    })
}

/// The results of `of` for each segment, `[tokens, width]`.
fn by_segment<'a>(
    heads: &'a AttentionHeads,
    layout: &'a AttentionLayout,
    qkv: &'a [f32],
    width: usize,
    of: impl Fn(SegmentRows<'a>) -> Vec<f32> + Sync,
) -> Vec<f32> {
    let fused = heads.fused_width();
    let parts: Vec<Vec<f32>> = layout
        .segments
        .par_iter()
        .map(|segment| {
            let tokens = segment.queries.clone();
            let qkv = &qkv[tokens.start * fused..tokens.end * fused];
            of(SegmentRows { heads, rope: &layout.rope, tokens, qkv })
        })
        .collect();
    let mut all = vec![0.0; qkv.len() / fused * width];
    for (segment, part) in layout.segments.iter().zip(parts) {
        all[segment.queries.start * width..segment.queries.end * width].copy_from_slice(&part);
    }
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

/// The outputs of a segment, `[tokens, queries * features]`.
struct Attend<'a>(SegmentRows<'a>);

/// The gradient of a segment's `qkv`, `[tokens, fused width]`, from that of its outputs.
struct AttendBackward<'a>(SegmentRows<'a>, &'a [f32]);

/// The inner products of each of `rows` with every lane of `lanes`, `[features]`.
#[inline(always)]
fn inner_products<S: Simd>(simd: S, rows: Take<Chunks<f32>>, lanes: &[S::f32s], products: &mut [S::f32s]) {
    for (number, &lanes) in lanes.as_chunks::<FEATURES>().0.iter().enumerate() {
        for (product, row) in products.iter_mut().zip(rows.clone()) {
            // Two sums, so that additions do not wait for each other.
            let mut even = if number == 0 { simd.splat_f32s(0.0) } else { *product };
            let mut odd = simd.splat_f32s(0.0);
            let values = &row.as_chunks::<FEATURES>().0[number];
            for feature in 0..FEATURES / 2 {
                even = simd.mul_add_e_f32s(simd.splat_f32s(values[2 * feature]), lanes[2 * feature], even);
                odd = simd.mul_add_e_f32s(simd.splat_f32s(values[2 * feature + 1]), lanes[2 * feature + 1], odd);
            }
            *product = simd.add_f32s(even, odd);
        }
    }
}

/// Adds the `rows`, each times its weight in every lane, to `sums`, `[features]`.
#[inline(always)]
fn add_weighted<S: Simd>(simd: S, weights: &[S::f32s], rows: Take<Chunks<f32>>, sums: &mut [S::f32s]) {
    for (number, block) in sums.as_chunks_mut::<FEATURES>().0.iter_mut().enumerate() {
        let mut sum = *block;
        for (&weight, row) in weights.iter().zip(rows.clone()) {
            let values = &row.as_chunks::<FEATURES>().0[number];
            for feature in 0..FEATURES {
                sum[feature] = simd.mul_add_e_f32s(weight, simd.splat_f32s(values[feature]), sum[feature]);
            }
        }
        *block = sum;
    }
}

/// `values` in lanes whose index is at least `from` and less than `to`, `hidden` in the others.
#[inline(always)]
fn within<S: Simd>(simd: S, indices: S::f32s, [from, to]: [f32; 2], values: S::f32s, hidden: S::f32s) -> S::f32s {
    let values = simd.select_f32s(simd.less_than_f32s(indices, simd.splat_f32s(from)), hidden, values);
    simd.select_f32s(simd.less_than_f32s(indices, simd.splat_f32s(to)), values, hidden)
}

/// The softmax of a block of queries: their weights for every key that any of them sees.
struct WeightBlock<'a, S: Simd> {
    heads: &'a AttentionHeads,
    seen: Range<usize>,
    /// `[seen]`.
    weights: Vec<S::f32s>,
    /// Each query's largest score, and the inverse of its sum.
    largest: S::f32s,
    inverse: S::f32s,
}

impl<'a, S: Simd> WeightBlock<'a, S> {
    #[inline(always)]
    fn new(simd: S, heads: &'a AttentionHeads) -> Self {
        let zero = simd.splat_f32s(0.0);
        Self { heads, seen: 0..0, weights: Vec::new(), largest: zero, inverse: zero }
    }

    /// Computes the weights of `queries` from their scaled lanes.
    #[inline(always)]
    fn compute(&mut self, simd: S, queries: &Range<usize>, lanes: &[S::f32s], keys: HeadRows) {
        let (first, last) = (visible_keys(self.heads, queries.start), visible_keys(self.heads, queries.end - 1));
        self.seen = first.start..last.end;
        let zero = simd.splat_f32s(0.0);
        self.weights.resize(self.seen.len(), zero);
        inner_products(simd, keys.at(self.seen.clone()), lanes, &mut self.weights);
        self.hide(simd, &first, &last, f32::NEG_INFINITY);
        let mut largest = simd.splat_f32s(f32::NEG_INFINITY);
        for &scores in &self.weights {
            largest = simd.max_f32s(largest, scores);
        }
        for weights in &mut self.weights {
            *weights = exp_lanes(simd, simd.sub_f32s(*weights, largest));
        }
        self.hide(simd, &first, &last, 0.0);
        let mut sum = zero;
        for &weights in &self.weights {
            sum = simd.add_f32s(sum, weights);
        }
        self.largest = largest;
        self.inverse = simd.div_f32s(simd.splat_f32s(1.0), sum);
        for weights in &mut self.weights {
            *weights = simd.mul_f32s(*weights, self.inverse);
        }
    }

    /// Sets the weights of keys that a query does not see to `hidden`; `first` and `last` are the keys that the first and
    /// the last query see.
    #[inline(always)]
    fn hide(&mut self, simd: S, first: &Range<usize>, last: &Range<usize>, hidden: f32) {
        let (hidden, indices) = (simd.splat_f32s(hidden), lane_indices(simd));
        let window = self.heads.window.map_or(f32::INFINITY, |window| window as f32);
        let start = self.seen.start;
        // All queries see the keys between the start of the last and the end of the first.
        for keys in [start..last.start, first.end.max(last.start)..last.end] {
            // Each query sees one key more than the one before, and with a window loses one.
            let mut from = keys.start as f32 + 1.0 - first.end as f32;
            for weights in &mut self.weights[keys.start - start..][..keys.len()] {
                *weights = within(simd, indices, [from, from + window], *weights, hidden);
                from += 1.0;
            }
        }
    }
}

/// The keys that a query of a segment sees.
#[inline(always)]
fn visible_keys(heads: &AttentionHeads, query: usize) -> Range<usize> {
    heads.visible(query, 0, 0)
}

impl SegmentRows<'_> {
    fn count(&self) -> usize {
        self.tokens.len()
    }

    /// The scale of scores.
    fn scale(&self) -> f32 {
        self.heads.kernel_scale()
    }

    /// Head `number` of all: queries, then keys, then values.
    #[inline(always)]
    fn head(&self, number: usize) -> HeadRows<'_> {
        HeadRows::head(self.qkv, self.heads.fused_width(), number * self.heads.features)
    }

    /// The rotation of its tokens.
    #[inline(always)]
    fn rope<S: Simd>(&self, simd: S) -> RopeLanes<S> {
        let (cosines, sines, pairs) = self.rope.of(self.tokens.clone());
        let lanes = |values| LaneMajor::of(simd, HeadRows { values, stride: pairs.max(1) }, self.count(), pairs);
        RopeLanes { cosines: lanes(cosines), sines: lanes(sines) }
    }

    /// Head `number` in lanes, rotated and scaled.
    #[inline(always)]
    fn rotated<S: Simd>(&self, simd: S, number: usize, rope: &RopeLanes<S>, scale: f32) -> LaneMajor<S> {
        let mut head = LaneMajor::of(simd, self.head(number), self.count(), self.heads.features);
        head.rotate(simd, rope, false);
        head.scale(simd, scale);
        head
    }
}

impl WithSimd for Attend<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self(segment) = self;
        let (heads, count) = (segment.heads, segment.count());
        let (features, width) = (heads.features, heads.queries * heads.features);
        let mut out = vec![0.0; count * width];
        let (rope, mut block) = (segment.rope(simd), WeightBlock::new(simd, heads));
        for key_head in 0..heads.keys {
            let keys = segment.rotated(simd, heads.queries + key_head, &rope, 1.0).rows(count);
            let keys = HeadRows { values: &keys, stride: features };
            let values = segment.head(heads.queries + heads.keys + key_head);
            for head in key_head * heads.shared()..(key_head + 1) * heads.shared() {
                let q = segment.rotated(simd, head, &rope, segment.scale());
                let mut sums = LaneMajor::zeros(simd, count, features);
                for (number, queries) in blocks::<S>(count).enumerate() {
                    block.compute(simd, &queries, q.block(number), keys);
                    add_weighted(simd, &block.weights, values.at(block.seen.clone()), sums.block_mut(number));
                }
                sums.write(&mut out, width, head * features);
            }
        }
        out
    }
}

/// The backward of one query head, with what its pass over queries keeps for the pass over keys.
struct QueryHead<'a, S: Simd> {
    heads: &'a AttentionHeads,
    count: usize,
    q: LaneMajor<S>,
    dout: LaneMajor<S>,
    dout_rows: HeadRows<'a>,
    /// Of each query the largest score, the inverse of its sum, and `rowsum(P dP)`.
    kept: [Vec<f32>; 3],
}

/// The keys and values of a key head, as rows and as lanes.
struct Keys<'a, S: Simd> {
    k: LaneMajor<S>,
    k_rows: HeadRows<'a>,
    v: LaneMajor<S>,
    v_rows: HeadRows<'a>,
}

impl<S: Simd> QueryHead<'_, S> {
    /// `dQ` of this head by blocks of queries, still rotated and not yet scaled.
    #[inline(always)]
    fn by_queries(&mut self, simd: S, keys: &Keys<S>) -> LaneMajor<S> {
        let mut dq = LaneMajor::zeros(simd, self.count, self.q.features);
        let (zero, mut block, mut products) = (simd.splat_f32s(0.0), WeightBlock::new(simd, self.heads), Vec::new());
        for (number, queries) in blocks::<S>(self.count).enumerate() {
            block.compute(simd, &queries, self.q.block(number), keys.k_rows);
            products.resize(block.seen.len(), zero);
            inner_products(simd, keys.v_rows.at(block.seen.clone()), self.dout.block(number), &mut products);
            let mut along = zero;
            for (&p, &dp) in block.weights.iter().zip(&products) {
                along = simd.mul_add_e_f32s(p, dp, along);
            }
            for (p, &dp) in block.weights.iter_mut().zip(&products) {
                *p = simd.mul_f32s(*p, simd.sub_f32s(dp, along));
            }
            add_weighted(simd, &block.weights, keys.k_rows.at(block.seen.clone()), dq.block_mut(number));
            for (all, lanes) in self.kept.iter_mut().zip([&block.largest, &block.inverse, &along]) {
                all.extend_from_slice(&cast_slice(std::slice::from_ref(lanes))[..queries.len()]);
            }
        }
        dq
    }

    /// Adds this head's part of `dK` and `dV` by blocks of keys, `dK` still rotated.
    #[inline(always)]
    fn by_keys(&self, simd: S, keys: &Keys<S>, dk: &mut LaneMajor<S>, dv: &mut LaneMajor<S>) {
        let q_rows = self.q.rows(self.count);
        let q_rows = HeadRows { values: &q_rows, stride: self.q.features };
        let [largest, inverse, along] = &self.kept;
        let (zero, indices) = (simd.splat_f32s(0.0), lane_indices(simd));
        let (mut weights, mut products): (Vec<S::f32s>, Vec<S::f32s>) = (Vec::new(), Vec::new());
        for (number, block) in blocks::<S>(self.count).enumerate() {
            // A key is seen from its own position on, and with a window by no query further than that.
            let end = self.heads.window.map_or(self.count, |window| (block.end - 1 + window).min(self.count));
            let seeing = block.start..end;
            weights.resize(seeing.len(), zero);
            inner_products(simd, q_rows.at(seeing.clone()), keys.k.block(number), &mut weights);
            for (query, weights) in seeing.clone().zip(&mut weights) {
                let scores = simd.sub_f32s(*weights, simd.splat_f32s(largest[query]));
                *weights = simd.mul_f32s(exp_lanes(simd, scores), simd.splat_f32s(inverse[query]));
                let visible = visible_keys(self.heads, query);
                if visible.start > block.start || visible.end < block.end {
                    let lanes = [visible.start, visible.end].map(|key| key as f32 - block.start as f32);
                    *weights = within(simd, indices, lanes, *weights, zero);
                }
            }
            add_weighted(simd, &weights, self.dout_rows.at(seeing.clone()), dv.block_mut(number));
            products.resize(seeing.len(), zero);
            inner_products(simd, self.dout_rows.at(seeing.clone()), keys.v.block(number), &mut products);
            for ((query, weights), &dp) in seeing.clone().zip(&mut weights).zip(&products) {
                *weights = simd.mul_f32s(*weights, simd.sub_f32s(dp, simd.splat_f32s(along[query])));
            }
            add_weighted(simd, &weights, q_rows.at(seeing), dk.block_mut(number));
        }
    }
}

impl WithSimd for AttendBackward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self(segment, dout) = self;
        let (heads, count, fused) = (segment.heads, segment.count(), segment.heads.fused_width());
        let (features, width) = (heads.features, heads.queries * heads.features);
        let mut dqkv = vec![0.0; count * fused];
        let rope = segment.rope(simd);
        for key_head in 0..heads.keys {
            let k = segment.rotated(simd, heads.queries + key_head, &rope, 1.0);
            let (k_rows, v_rows) = (k.rows(count), segment.head(heads.queries + heads.keys + key_head));
            let v = LaneMajor::of(simd, v_rows, count, features);
            let keys = Keys { k, k_rows: HeadRows { values: &k_rows, stride: features }, v, v_rows };
            let mut dk = LaneMajor::zeros(simd, count, features);
            let mut dv = LaneMajor::zeros(simd, count, features);
            for head in key_head * heads.shared()..(key_head + 1) * heads.shared() {
                let dout_rows = HeadRows::head(dout, width, head * features);
                let q = segment.rotated(simd, head, &rope, segment.scale());
                let dout = LaneMajor::of(simd, dout_rows, count, features);
                let mut own = QueryHead { heads, count, q, dout, dout_rows, kept: Default::default() };
                let mut dq = own.by_queries(simd, &keys);
                own.by_keys(simd, &keys, &mut dk, &mut dv);
                dq.rotate(simd, &rope, true);
                dq.scale(simd, segment.scale());
                dq.write(&mut dqkv, fused, head * features);
            }
            dk.rotate(simd, &rope, true);
            dk.write(&mut dqkv, fused, (heads.queries + key_head) * features);
            dv.write(&mut dqkv, fused, (heads.queries + heads.keys + key_head) * features);
        }
        dqkv
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
        let segment = || SegmentRows { heads, rope: &rope_table, tokens: 0..TOKENS, qkv: &qkv };
        [simd.vectorize(Attend(segment())), simd.vectorize(AttendBackward(segment(), &dout))]
    }

    #[test]
    fn vectors_of_every_width_agree() {
        for window in [None, Some(5), Some(1)] {
            let heads = AttentionHeads { window, ..AttentionHeads::new(4, 2, 16) };
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
