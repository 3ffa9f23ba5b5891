//! Heads as rows and as lanes: of a block of as many rows as a vector has lanes, each feature is one vector.

use crate::attention::lane_transpose::{FEATURES, HeadRow, Lanes, lanes_to_rows, rows_to_lanes};
use lorakit_lora::kernels::simd::Simd;
use pulp::bytemuck::cast_slice_mut;
use std::ops::Range;

/// The rows of a head, `[rows]`; zeros after the last fill a whole block.
pub(crate) struct HeadRows<const GROUPS: usize>(Vec<HeadRow<GROUPS>>);

impl<const GROUPS: usize> HeadRows<GROUPS> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Copies in the head whose features start at `column` of wider rows, `stride` values apart.
    #[inline(always)]
    pub(crate) fn read<S: Simd>(&mut self, _: S, values: &[f32], stride: usize, column: usize) {
        let (count, head) = (values.len() / stride, column..column + GROUPS * FEATURES);
        self.0.resize(count.next_multiple_of(S::F32_LANES), [[0.0; FEATURES]; GROUPS]);
        for (row, values) in self.0.iter_mut().zip(values.chunks_exact(stride)) {
            row.as_flattened_mut().copy_from_slice(&values[head.clone()]);
        }
        self.0[count..].fill([[0.0; FEATURES]; GROUPS]);
    }

    /// Copies in the rows of `lanes`.
    #[inline(always)]
    pub(crate) fn read_lanes<S: Simd>(&mut self, simd: S, lanes: &HeadLanes<S, GROUPS>) {
        self.0.resize(lanes.0.len() * S::F32_LANES, [[0.0; FEATURES]; GROUPS]);
        for (rows, lanes) in self.0.chunks_exact_mut(S::F32_LANES).zip(&lanes.0) {
            lanes_to_rows(simd, lanes, rows);
        }
    }

    /// Writes the rows to `to`, whose rows are `stride` apart, from `column` on.
    #[inline(always)]
    pub(crate) fn write(&self, to: &mut [f32], stride: usize, column: usize) {
        for (row, head) in to.chunks_exact_mut(stride).zip(&self.0) {
            row[column..][..GROUPS * FEATURES].copy_from_slice(head.as_flattened());
        }
    }

    /// A range of the rows.
    #[inline(always)]
    pub(crate) fn at(&self, rows: Range<usize>) -> &[HeadRow<GROUPS>] {
        &self.0[rows]
    }
}

/// The rows of a head as lanes, `[blocks]`; lanes after the last row are zero.
pub(crate) struct HeadLanes<S: Simd, const GROUPS: usize>(Vec<Lanes<S, GROUPS>>);

impl<S: Simd, const GROUPS: usize> HeadLanes<S, GROUPS> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// Sets all lanes of `count` rows to zero.
    #[inline(always)]
    pub(crate) fn clear(&mut self, simd: S, count: usize) {
        self.0.clear();
        self.0.resize(count.div_ceil(S::F32_LANES), [[simd.splat_f32s(0.0); FEATURES]; GROUPS]);
    }

    /// Copies in the rows.
    #[inline(always)]
    pub(crate) fn read(&mut self, simd: S, rows: &HeadRows<GROUPS>) {
        self.0.resize(rows.0.len() / S::F32_LANES, [[simd.splat_f32s(0.0); FEATURES]; GROUPS]);
        for (lanes, rows) in self.0.iter_mut().zip(rows.0.chunks_exact(S::F32_LANES)) {
            rows_to_lanes(simd, rows, lanes);
        }
    }

    #[inline(always)]
    pub(crate) fn block(&self, number: usize) -> &Lanes<S, GROUPS> {
        &self.0[number]
    }

    #[inline(always)]
    pub(crate) fn block_mut(&mut self, number: usize) -> &mut Lanes<S, GROUPS> {
        &mut self.0[number]
    }

    /// Every value times `factor`.
    #[inline(always)]
    pub(crate) fn scale(&mut self, simd: S, factor: f32) {
        let factor = simd.splat_f32s(factor);
        for lanes in self.0.as_flattened_mut().as_flattened_mut() {
            *lanes = simd.mul_f32s(*lanes, factor);
        }
    }

    /// Rotates every row by its angles, or back if `inverse`.
    #[inline(always)]
    pub(crate) fn rotate(&mut self, simd: S, rope: &RopeLanes<S, GROUPS>, inverse: bool) {
        for (lanes, angles) in self.0.iter_mut().zip(&rope.angles.0) {
            let (first, rest) = lanes.as_flattened_mut().split_at_mut(rope.pairs);
            let (cosines, sines) = angles.as_flattened().split_at(rope.pairs);
            for ((x, y), (&c, &s)) in first.iter_mut().zip(rest).zip(cosines.iter().zip(sines)) {
                let s = if inverse { simd.neg_f32s(s) } else { s };
                let rotated = simd.sub_f32s(simd.mul_f32s(*x, c), simd.mul_f32s(*y, s));
                *y = simd.add_f32s(simd.mul_f32s(*y, c), simd.mul_f32s(*x, s));
                *x = rotated;
            }
        }
    }
}

/// The rotation of a segment's tokens as lanes.
pub(crate) struct RopeLanes<S: Simd, const GROUPS: usize> {
    /// Of each block the cosines of all pairs, then the sines: a head has twice as many features as pairs, or more.
    angles: HeadLanes<S, GROUPS>,
    pairs: usize,
}

impl<S: Simd, const GROUPS: usize> RopeLanes<S, GROUPS> {
    /// Of cosines and sines `[tokens, pairs]`.
    #[inline(always)]
    pub(crate) fn new(simd: S, cosines: &[f32], sines: &[f32], pairs: usize) -> Self {
        let (mut rows, mut angles) = (HeadRows::new(), HeadLanes::new());
        if let Some(count) = cosines.len().checked_div(pairs) {
            rows.0.resize(count.next_multiple_of(S::F32_LANES), [[0.0; FEATURES]; GROUPS]);
            let tokens = cosines.chunks_exact(pairs).zip(sines.chunks_exact(pairs));
            for (row, (cosines, sines)) in rows.0.iter_mut().zip(tokens) {
                let (first, rest) = row.as_flattened_mut().split_at_mut(pairs);
                first.copy_from_slice(cosines);
                rest[..pairs].copy_from_slice(sines);
            }
            angles.read(simd, &rows);
        }
        Self { angles, pairs }
    }
}

/// The range of rows of each block.
#[inline(always)]
pub(crate) fn blocks<S: Simd>(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(S::F32_LANES).map(move |start| start..(start + S::F32_LANES).min(count))
}

/// The index of each lane.
#[inline(always)]
pub(crate) fn lane_indices<S: Simd>(simd: S) -> S::f32s {
    let mut indices = simd.splat_f32s(0.0);
    let lanes: &mut [f32] = cast_slice_mut(std::slice::from_mut(&mut indices));
    lanes.iter_mut().enumerate().for_each(|(number, lane)| *lane = number as f32);
    indices
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorakit_lora::kernels::simd::{SimdLevel, WithSimd};

    /// Rows of one head, read from column 1 of wider rows and written to column 2 of others.
    struct RoundTrip<'a>(&'a [f32], usize);

    impl WithSimd for RoundTrip<'_> {
        type Output = Vec<f32>;

        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let Self(values, count) = self;
            let (mut rows, mut lanes) = (HeadRows::<1>::new(), HeadLanes::new());
            rows.read(simd, values, 5 + FEATURES, 1);
            lanes.read(simd, &rows);
            lanes.scale(simd, 2.0);
            rows.read_lanes(simd, &lanes);
            let mut to = vec![-1.0; count * (6 + FEATURES)];
            rows.write(&mut to, 6 + FEATURES, 2);
            to
        }
    }

    #[test]
    fn rows_read_into_lanes_are_written_back_in_order() {
        for (count, level) in
            [0, 1, 15, 16, 17, 40].into_iter().flat_map(|n| SimdLevel::available().map(move |l| (n, l)))
        {
            let values: Vec<f32> = (0..count * (5 + FEATURES)).map(|i| i as f32).collect();
            let written = level.dispatch(RoundTrip(&values, count));
            for (to, from) in written.chunks(6 + FEATURES).zip(values.chunks(5 + FEATURES)) {
                let expected: Vec<f32> = from[1..1 + FEATURES].iter().map(|value| 2.0 * value).collect();
                assert_eq!(to[2..2 + FEATURES], expected);
                assert!(to[..2].iter().chain(&to[2 + FEATURES..]).all(|&value| value == -1.0));
            }
        }
    }
}
