//! Heads turned: as many rows as a vector has lanes stand side by side, each feature a vector.

use lorakit_lora::kernels::simd::Simd;
use pulp::bytemuck::{cast_slice, cast_slice_mut};
use std::iter::Take;
use std::ops::Range;
use std::slice::Chunks;

/// Features that are worked on at a time; heads have a multiple of them.
pub(crate) const FEATURES: usize = 8;

/// HeadRows of some features, which start `stride` apart.
#[derive(Clone, Copy)]
pub(crate) struct HeadRows<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) stride: usize,
}

impl<'a> HeadRows<'a> {
    /// The rows of one head within wider ones, whose features start at `column`.
    #[inline(always)]
    pub(crate) fn head(values: &'a [f32], stride: usize, column: usize) -> Self {
        Self { values: values.get(column..).unwrap_or_default(), stride }
    }

    /// Some of them.
    #[inline(always)]
    pub(crate) fn at(&self, rows: Range<usize>) -> Take<Chunks<'a, f32>> {
        self.values[rows.start * self.stride..].chunks(self.stride).take(rows.len())
    }
}

/// Heads whose rows stand side by side as lanes: `[blocks of lanes, features]`; lanes beyond the last row are zero.
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
        let mut turned = Self::zeros(simd, count, features);
        if features == 0 {
            return turned;
        }
        let values: &mut [f32] = cast_slice_mut(&mut turned.lanes);
        for (block, rows_of) in values.chunks_exact_mut(features * S::F32_LANES).zip(blocks::<S>(count)) {
            for (lane, row) in rows.at(rows_of).enumerate() {
                // Eight at a time, or the compiler makes scattered stores of it, which are slower.
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
        turned
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

    /// Rotates every row by its angles, or back.
    #[inline(always)]
    pub(crate) fn rotate(&mut self, simd: S, turn: &RopeLanes<S>, back: bool) {
        let pairs = turn.cosines.features;
        for number in 0..self.lanes.len() / self.features {
            let (cosines, sines) = (turn.cosines.block(number), turn.sines.block(number));
            let (first, rest) = self.block_mut(number).split_at_mut(pairs);
            for (((x, y), &c), &s) in first.iter_mut().zip(rest).zip(cosines).zip(sines) {
                let s = if back { simd.neg_f32s(s) } else { s };
                let turned = simd.sub_f32s(simd.mul_f32s(*x, c), simd.mul_f32s(*y, s));
                *y = simd.add_f32s(simd.mul_f32s(*y, c), simd.mul_f32s(*x, s));
                *x = turned;
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

    /// The same as rows of their own, one behind the other.
    #[inline(always)]
    pub(crate) fn rows(&self, count: usize) -> Vec<f32> {
        let mut rows = vec![0.0; count * self.features];
        self.write(&mut rows, self.features, 0);
        rows
    }
}

/// The angles of a segment's tokens, turned as its heads are.
pub(crate) struct RopeLanes<S: Simd> {
    pub(crate) cosines: LaneMajor<S>,
    pub(crate) sines: LaneMajor<S>,
}

/// The ranges of rows that stand side by side.
#[inline(always)]
pub(crate) fn blocks<S: Simd>(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(S::F32_LANES).map(move |start| start..(start + S::F32_LANES).min(count))
}

/// The number of each lane.
#[inline(always)]
pub(crate) fn lane_indices<S: Simd>(simd: S) -> S::f32s {
    let mut numbers = simd.splat_f32s(0.0);
    let lanes: &mut [f32] = cast_slice_mut(std::slice::from_mut(&mut numbers));
    lanes.iter_mut().enumerate().for_each(|(number, lane)| *lane = number as f32);
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorakit_lora::kernels::simd::{self, WithSimd};

    /// HeadRows of one head, from the second column of five, turned and written to the third of six.
    struct ThereAndBack<'a>(&'a [f32], usize);

    impl WithSimd for ThereAndBack<'_> {
        type Output = Vec<f32>;

        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            let Self(values, count) = self;
            let mut turned = LaneMajor::of(simd, HeadRows::head(values, 5 + FEATURES, 1), count, FEATURES);
            turned.scale(simd, 2.0);
            let mut to = vec![-1.0; count * (6 + FEATURES)];
            turned.write(&mut to, 6 + FEATURES, 2);
            assert_eq!(turned.rows(count).len(), count * FEATURES);
            to
        }
    }

    #[test]
    fn what_is_turned_is_written_back_where_it_belongs() {
        for count in [0, 1, 15, 16, 17, 40] {
            let values: Vec<f32> = (0..count * (5 + FEATURES)).map(|i| i as f32).collect();
            let written = simd::dispatch(ThereAndBack(&values, count));
            for (to, from) in written.chunks(6 + FEATURES).zip(values.chunks(5 + FEATURES)) {
                let expected: Vec<f32> = from[1..1 + FEATURES].iter().map(|value| 2.0 * value).collect();
                assert_eq!(to[2..2 + FEATURES], expected);
                assert!(to[..2].iter().chain(&to[2 + FEATURES..]).all(|&value| value == -1.0));
            }
        }
    }
}
