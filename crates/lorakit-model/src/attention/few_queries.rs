//! Attention of few queries to cached keys, as in decoding: keys and values are read where they are, once for all
//! query heads that share them, and a row's task ends before a matrix product would be set up. One task of the thread pool
//! takes one segment.

use crate::attention::distance_bias::DistanceTable;
use crate::attention::heads::AttentionHeads;
use crate::attention::segment::AttentionSegment;
use crate::attention::softmax::Softmax;
use crate::layer::soft_cap::SoftCap;
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use lorakit_lora::kernels::vector_product::inner_product;
use rayon::prelude::*;

/// The most queries of a segment for which this is faster than matrix products.
const FEW: usize = 4;

/// Whether these segments are handled here: all of a batch or none. A row that decodes beside long prompts is thus rounded
/// as in a product of matrices.
pub(super) fn supports(segments: &[AttentionSegment]) -> bool {
    segments.iter().all(|segment| segment.queries.len() <= FEW)
}

/// The outputs, `[tokens, queries * features]`, of rotated queries, the first columns of `[tokens, stride]`, over cached keys
/// and values, `[slots, keys * features]` each.
pub(super) fn attend_cached(
    heads: &AttentionHeads,
    segments: &[AttentionSegment],
    rows: (&[f32], usize),
    cached: [&[f32]; 2],
    bias: Option<DistanceTable>,
) -> Vec<f32> {
    let width = heads.queries * heads.features;
    let mut y = vec![0.0; rows.0.len() / rows.1 * width];
    let (mut rest, mut tasks) = (y.as_mut_slice(), Vec::with_capacity(segments.len()));
    for segment in segments {
        let (own, others) = rest.split_at_mut(segment.queries.len() * width);
        tasks.push((segment, own));
        rest = others;
    }
    let attend = |(segment, y)| simd::dispatch(AttendSegment { heads, segment, rows, cached, bias, y });
    tasks.into_par_iter().for_each(attend);
    y
}

/// The attention of one segment, whose outputs are `y`, `[queries, query heads * features]`.
struct AttendSegment<'a> {
    heads: &'a AttentionHeads,
    segment: &'a AttentionSegment,
    /// Queries, the first columns of rows, and the width of a row.
    rows: (&'a [f32], usize),
    cached: [&'a [f32]; 2],
    bias: Option<DistanceTable<'a>>,
    y: &'a mut [f32],
}

impl WithSimd for AttendSegment<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { heads, segment, rows: (rows, width), cached: [keys, values], bias, y } = self;
        let (f, shared, stride) = (heads.features, heads.shared(), heads.key_width());
        let (queries, count) = (segment.queries.len(), segment.keys.iter().map(ExactSizeIterator::len).sum::<usize>());
        if queries == 0 {
            return;
        }
        // The keys that any query sees: the first query sees the earliest.
        let first = heads.visible(0, queries, count).start;
        let (seen, scale) = (count - first, heads.kernel_scale());
        let mut scores = vec![0.0; queries * shared * seen];
        for key_head in 0..heads.keys {
            let slots = || segment.keys.iter().cloned().flatten().skip(first);
            let of = |slot: usize| slot * stride + key_head * f..slot * stride + (key_head + 1) * f;
            for (at, slot) in slots().enumerate() {
                let k = &keys[of(slot)];
                for row in 0..queries * shared {
                    let start = (segment.queries.start + row / shared) * width;
                    let q = &rows[start + (key_head * shared + row % shared) * f..][..f];
                    scores[row * seen + at] = inner_product(q, k) * scale;
                }
            }
            if let Some(cap) = heads.soft_cap {
                SoftCap { values: &mut scores, cap: cap as f32 }.with_simd(simd);
            }
            for local in (0..shared).filter(|_| bias.is_some()) {
                let head = key_head * shared + local;
                let diagonals = bias.map(|table| table.diagonals(head, queries, count)).unwrap_or_default();
                for query in 0..queries {
                    let own = &diagonals[queries - 1 - query + first..];
                    let scores = &mut scores[(query * shared + local) * seen..][..seen];
                    scores.iter_mut().zip(own).for_each(|(score, bias)| *score += bias);
                }
            }
            let visible = |row: usize| {
                let visible = heads.visible(row / shared, queries, count);
                visible.start - first..visible.end - first
            };
            Softmax { scores: &mut scores, width: seen, visible }.with_simd(simd);
            for (at, slot) in slots().enumerate() {
                let v = &values[of(slot)];
                for row in 0..queries * shared {
                    let weight = scores[row * seen + at];
                    let start = (row / shared * heads.queries + key_head * shared + row % shared) * f;
                    y[start..start + f].iter_mut().zip(v).for_each(|(y, v)| *y += weight * v);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::blockwise;

    /// Segments with several runs of keys, one of which others share, and with more queries than one.
    #[test]
    fn it_equals_matrix_products_with_windows_caps_and_biases() {
        let keys = |ranges: &[std::ops::Range<usize>]| ranges.to_vec();
        let segments = [
            AttentionSegment { queries: 0..1, keys: keys(&[0..5, 9..10]) },
            AttentionSegment { queries: 1..4, keys: keys(&[0..5, 14..20, 30..31]) },
            AttentionSegment { queries: 4..4, keys: keys(&[]) },
            AttentionSegment { queries: 4..5, keys: keys(std::slice::from_ref(&(21..22))) },
        ];
        assert!(supports(&segments));
        let plain = AttentionHeads::new(6, 2, 16);
        for heads in [
            plain,
            AttentionHeads { causal: false, ..plain },
            AttentionHeads { window: Some(3), ..plain },
            AttentionHeads { soft_cap: Some(2.0), ..plain },
        ] {
            let numbers = |count: usize, step: usize| -> Vec<f32> {
                (0..count).map(|i| ((i * step) % 23) as f32 / 11.0 - 1.0).collect()
            };
            let (qkv, k, v) = (numbers(5 * heads.fused_width(), 7), numbers(31 * 32, 5), numbers(31 * 32, 3));
            let (rows, table) = ((qkv.as_slice(), heads.fused_width()), numbers(6 * 9, 4));
            for bias in [None, Some(DistanceTable::new(&table, 6))] {
                let few = attend_cached(&heads, &segments, rows, [&k, &v], bias);
                let products = blockwise::attend_cached(&heads, &segments, rows, [&k, &v], bias);
                assert_eq!(few.len(), products.len());
                let differences: Vec<f32> = few.iter().zip(&products).map(|(a, b)| (a - b).abs()).collect();
                assert!(differences.iter().all(|difference| *difference < 1e-5), "{heads:?}: {differences:?}");
            }
        }
    }
}
