//! Heads in lane-major layout: a block holds as many rows as a vector has lanes, and each feature of a block is one vector.

use lorakit_lora::kernels::simd::Simd;
use pulp::bytemuck::{cast_slice, cast_slice_mut};
use std::iter::Take;
use std::ops::Range;
use std::slice::Chunks;

/// Features handled at a time; the width of a head is a multiple.
pub(crate) const FEATURES: usize = 8;

/// Rows of a head, `stride` values apart.
#[derive(Clone, Copy)]
pub(crate) struct HeadRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> HeadRows<'a> {
    /// The rows of the head whose features start at `column` of wider rows.
    #[inline(always)]
    pub(crate) fn head(values: &'a [f32], stride: usize, column: usize) -> Self {
        Self { values: values.get(column..).unwrap_or_default(), stride }
    }

    /// A range of the rows.
    #[inline(always)]
    pub(crate) fn at(&self, rows: Range<usize>) -> Take<Chunks<'a, f32>> {
        self.values[rows.start * self.stride..].chunks(self.stride).take(rows.len())
    }
}

/// Rows of a head as lanes: `[blocks of lanes, features]`; lanes beyond the last row are zero.
pub(crate) struct LaneMajor<S: Simd> {
    lanes: Vec<S::f32s>,
    pub(crate) features: usize,
}

impl<S: Simd> LaneMajor<S> {
    #[inline(always)]
    pub(crate) fn zeros(simd: S, rows: usize, features: usize) -> Self {
        Self { lanes: vec![simd.splat_f32s(0.0); rows.div_ceil(S::F32_LANES) * features], features }
    }

    #[inline(always)]
    pub(crate) fn of(simd: S, rows: HeadRows, count: usize, features: usize) -> Self {
        let mut lanes = Self::zeros(simd, count, features);
        if features == 0 {
            return lanes;
        }
        let values: &mut [f32] = cast_slice_mut(&mut lanes.lanes);
        for (block, rows_of) in values.chunks_exact_mut(features * S::F32_LANES).zip(blocks::<S>(count)) {
            for (lane, row) in rows.at(rows_of).enumerate() {
                // Eight at a time, or the compiler emits scatter stores, which are slower.
                let (whole, rest) = row[..features].as_chunks::<FEATURES>();
                for (number, values) in whole.iter().enumerate() {
                    let block = &mut block[number * FEATURES * S::F32_LANES + lane..];
                    for feature in 0..FEATURES {
                        block[feature * S::F32_LANES] = values[feature];
                    }
                }
                for (feature, &value) in rest.iter().enumerate() {
                    block[(whole.len() * FEATURES + feature) * S::F32_LANES + lane] = value;
                }
            }
        }
        lanes
    }

    #[inline(always)]
    pub(crate) fn block(&self, number: usize) -> &[S::f32s] {
        &self.lanes[number * self.features..(number + 1) * self.features]
    }

    #[inline(always)]
    pub(crate) fn block_mut(&mut self, number: usize) -> &mut [S::f32s] {
        &mut self.lanes[number * self.features..(number + 1) * self.features]
    }

    /// Every value times `factor`.
    #[inline(always)]
    pub(crate) fn scale(&mut self, simd: S, factor: f32) {
        let factor = simd.splat_f32s(factor);
        for lanes in &mut self.lanes {
            *lanes = simd.mul_f32s(*lanes, factor);
        }
    }

    /// Rotates every row by its angles, or back if `inverse`.
    #[inline(always)]
    pub(crate) fn rotate(&mut self, simd: S, rope: &RopeLanes<S>, inverse: bool) {
        let pairs = rope.cosines.features;
        for number in 0..self.lanes.len() / self.features {
            let (cosines, sines) = (rope.cosines.block(number), rope.sines.block(number));
            let (first, rest) = self.block_mut(number).split_at_mut(pairs);
            for (((x, y), &c), &s) in first.iter_mut().zip(rest).zip(cosines).zip(sines) {
                let s = if inverse { simd.neg_f32s(s) } else { s };
                let rotated = simd.sub_f32s(simd.mul_f32s(*x, c), simd.mul_f32s(*y, s));
                *y = simd.add_f32s(simd.mul_f32s(*y, c), simd.mul_f32s(*x, s));
                *x = rotated;
            }
        }
    }

    /// Writes the rows to `to`, whose rows are `stride` apart, from `column` on.
    #[inline(always)]
    pub(crate) fn write(&self, to: &mut [f32], stride: usize, column: usize) {
        let values: &[f32] = cast_slice(&self.lanes);
        let blocks = values.chunks_exact(self.features * S::F32_LANES);
        for (rows, block) in to.chunks_mut(stride * S::F32_LANES).zip(blocks) {
            for (lane, row) in rows.chunks_exact_mut(stride).enumerate() {
                let whole = row[column..column + self.features].as_chunks_mut::<FEATURES>().0;
                for (number, values) in whole.iter_mut().enumerate() {
                    let block = &block[number * FEATURES * S::F32_LANES + lane..];
                    for feature in 0..FEATURES {
                        values[feature] = block[feature * S::F32_LANES];
                    }
                }
            }
        }
    }

    /// The rows, contiguous.
    #[inline(always)]
    pub(crate) fn rows(&self, count: usize) -> Vec<f32> {
        let mut rows = vec![0.0; count * self.features];
        self.write(&mut rows, self.features, 0);
        rows
    }
}

/// The rotation of a segment's tokens, in the layout of its heads.
pub(crate) struct RopeLanes<S: Simd> {
    pub(crate) cosines: LaneMajor<S>,
    pub(crate) sines: LaneMajor<S>,
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
    use lorakit_lora::kernels::simd::{self, WithSimd};

    /// Rows of one head, read from column 1 of wider rows and written to column 2 of others.
    struct RoundTrip<'a>(&'a [f32], usize);

    impl WithSimd for RoundTrip<'_> {
        type Output = Vec<f32>;

        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let Self(values, count) = self;
            let mut lanes = LaneMajor::of(simd, HeadRows::head(values, 5 + FEATURES, 1), count, FEATURES);
            lanes.scale(simd, 2.0);
            let mut to = vec![-1.0; count * (6 + FEATURES)];
            lanes.write(&mut to, 6 + FEATURES, 2);
            assert_eq!(lanes.rows(count).len(), count * FEATURES);
            to
        }
    }

    #[test]
    fn rows_read_into_lanes_are_written_back_in_order() {
        for count in [0, 1, 15, 16, 17, 40] {
            let values: Vec<f32> = (0..count * (5 + FEATURES)).map(|i| i as f32).collect();
            let written = simd::dispatch(RoundTrip(&values, count));
            for (to, from) in written.chunks(6 + FEATURES).zip(values.chunks(5 + FEATURES)) {
                let expected: Vec<f32> = from[1..1 + FEATURES].iter().map(|value| 2.0 * value).collect();
                assert_eq!(to[2..2 + FEATURES], expected);
                assert!(to[..2].iter().chain(&to[2 + FEATURES..]).all(|&value| value == -1.0));
            }
        }
    }
}
