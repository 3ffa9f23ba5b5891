//! Softmax of many rows, with its backward.

use crate::vector_math::{dot, exp, largest, total};
use lorakit_lora::kernels::simd::{Simd, WithSimd};
use std::ops::Range;

/// Softmax of each row of `width` scores over its `visible` range; zero elsewhere.
pub(crate) struct Softmax<'a, V> {
    pub(crate) scores: &'a mut [f32],
    pub(crate) width: usize,
    pub(crate) visible: V,
}

impl<V: Fn(usize) -> Range<usize>> WithSimd for Softmax<'_, V> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (i, row) in self.scores.chunks_exact_mut(self.width).enumerate() {
            let max = largest(&row[(self.visible)(i)]);
            row.iter_mut().for_each(|score| *score -= max);
        }
        // All rows at once, with what is not visible: many rows are shorter than a few vectors.
        self.scores.iter_mut().for_each(|score| *score = exp(*score));
        for (i, row) in self.scores.chunks_exact_mut(self.width).enumerate() {
            let visible = (self.visible)(i);
            row[..visible.start].fill(0.0);
            row[visible.end..].fill(0.0);
            let row = &mut row[visible];
            let inverse = (1.0 / total(row)) as f32;
            row.iter_mut().for_each(|weight| *weight *= inverse);
        }
    }
}

/// Turns rows of `width` weights `P` into `P (dP - rowsum(P dP))`.
pub(crate) struct SoftmaxBackward<'a> {
    pub(crate) weights: &'a mut [f32],
    pub(crate) dp: &'a [f32],
    pub(crate) width: usize,
}

impl WithSimd for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (p, dp) in self.weights.chunks_exact_mut(self.width).zip(self.dp.chunks_exact(self.width)) {
            let row_dot = dot(p, dp);
            p.iter_mut().zip(dp).for_each(|(p, dp)| *p *= dp - row_dot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorakit_lora::kernels::simd;

    #[test]
    fn rows_become_weights_over_their_visible_range() {
        let mut scores = vec![1.0, 2.0, 9.0, 3.0, 3.0, 3.0];
        simd::dispatch(Softmax { scores: &mut scores, width: 3, visible: |row| row..row + 2 });
        let e = std::f32::consts::E;
        let expected = [1.0 / (1.0 + e), e / (1.0 + e), 0.0, 0.0, 0.5, 0.5];
        assert!(scores.iter().zip(expected).all(|(s, x)| (s - x).abs() < 1e-6), "{scores:?}");
        // dS = P (dP - <P, dP>): a constant added to a row of dP has no effect.
        simd::dispatch(SoftmaxBackward { weights: &mut scores, dp: &[4.0, 4.0, 7.0, 5.0, 2.0, 4.0], width: 3 });
        assert!(scores.iter().zip([0.0, 0.0, 0.0, 0.0, -0.5, 0.5]).all(|(s, x)| (s - x).abs() < 1e-6), "{scores:?}");
    }
}
