//! The sums of a row of blocks with some tokens.
//!
//! The sums of eight groups are gathered in one vector before they are multiplied with their scales, which is done once for
//! all of them.

use super::eight_bit_tokens::{EightBitToken, GROUP, PARTS, STEP};
use super::x86_dot_product::{Numbers, bytes};
use std::arch::x86_64::*;
use std::ops::Range;

/// The running sums of one row with some tokens: a lane of each group of a step.
pub(super) struct RowSums<'a, const TOKENS: usize> {
    tokens: [EightBitToken<'a>; TOKENS],
    lanes: [__m256; TOKENS],
}

impl<'a, const TOKENS: usize> RowSums<'a, TOKENS> {
    #[inline(always)]
    pub(super) unsafe fn new(tokens: [EightBitToken<'a>; TOKENS]) -> Self {
        // SAFETY: the caller has checked the machine; so in all of this file.
        Self { tokens, lanes: [unsafe { _mm256_setzero_ps() }; TOKENS] }
    }

    /// Subtracts the minima of a step's groups.
    #[inline(always)]
    pub(super) unsafe fn subtract(&mut self, step: usize, minima: __m256) {
        for (lanes, token) in self.lanes.iter_mut().zip(&self.tokens) {
            unsafe {
                let sums = _mm256_loadu_ps(token.sums.as_ptr().add(step * PARTS));
                *lanes = _mm256_fnmadd_ps(minima, sums, *lanes);
            }
        }
    }

    /// The same for a type whose groups are 16 values.
    #[inline(always)]
    pub(super) unsafe fn subtract_halves(&mut self, step: usize, minima: [__m256; 2]) {
        for (lanes, token) in self.lanes.iter_mut().zip(&self.tokens) {
            unsafe {
                let sums = token.half_sums.as_ptr().add(step * PARTS * 2);
                *lanes = _mm256_fnmadd_ps(minima[0], _mm256_loadu_ps(sums), *lanes);
                *lanes = _mm256_fnmadd_ps(minima[1], _mm256_loadu_ps(sums.add(PARTS)), *lanes);
            }
        }
    }

    /// Adds the products of the first `parts` groups of a step, which have these factors: `read` gives a group's numbers, and
    /// `dot` four sums of the products of group, token and their numbers.
    #[inline(always)]
    pub(super) unsafe fn add(
        &mut self,
        (step, parts): (usize, usize),
        factors: __m256,
        read: impl Fn(usize) -> Numbers,
        dot: impl Fn(usize, Numbers, Numbers) -> __m128i,
    ) {
        unsafe {
            let low = self.four_groups(step, 0..parts.min(4), &read, &dot);
            let high = match parts {
                0..=4 => [_mm_setzero_si128(); TOKENS],
                _ => self.four_groups(step, 4..parts, &read, &dot),
            };
            let eights = low.into_iter().zip(high).zip(&self.tokens);
            for (((low, high), token), lanes) in eights.zip(&mut self.lanes) {
                let sums = _mm256_cvtepi32_ps(_mm256_set_m128i(high, low));
                let scales = _mm256_loadu_ps(token.scales.as_ptr().add(step * PARTS));
                *lanes = _mm256_fmadd_ps(_mm256_mul_ps(factors, scales), sums, *lanes);
            }
        }
    }

    /// For each token the sums of up to four groups, each in a lane.
    #[inline(always)]
    unsafe fn four_groups(
        &self,
        step: usize,
        groups: Range<usize>,
        read: &impl Fn(usize) -> Numbers,
        dot: &impl Fn(usize, Numbers, Numbers) -> __m128i,
    ) -> [__m128i; TOKENS] {
        unsafe {
            let zero = _mm_setzero_si128();
            let (mut pairs, mut fours) = ([[zero; 2]; TOKENS], [zero; TOKENS]);
            for (pair, first) in [groups.start, groups.start + 2].into_iter().enumerate() {
                if first >= groups.end {
                    break;
                }
                let numbers = [read(first), if first + 1 < groups.end { read(first + 1) } else { [zero; 2] }];
                for (pairs, token) in pairs.iter_mut().zip(&self.tokens) {
                    let x = token.quants.as_ptr().add(step * STEP + first * GROUP);
                    let a = dot(first, numbers[0], [bytes(x), bytes(x.add(16))]);
                    let b = dot(first + 1, numbers[1], [bytes(x.add(32)), bytes(x.add(48))]);
                    pairs[pair] = _mm_add_epi32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
                }
            }
            for (four, [a, b]) in fours.iter_mut().zip(pairs) {
                *four = _mm_add_epi32(_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b));
            }
            fours
        }
    }

    /// Each token's product with the row.
    #[inline(always)]
    pub(super) unsafe fn totals(&self) -> [f32; TOKENS] {
        let mut totals = [0.0; TOKENS];
        unsafe {
            for (total, &eight) in totals.iter_mut().zip(&self.lanes) {
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                *total = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
            }
        }
        totals
    }
}
