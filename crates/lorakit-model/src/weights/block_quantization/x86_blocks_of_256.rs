//! The sums of a row of blocks of 256 values, each of which is a step.

use super::blocks_of_256::scales_and_minima;
use super::eight_bit_tokens::{PARTS, STEP};
use super::x86_dot_product::{DotProduct, Numbers, bytes, high_bits, low_bits};
use super::x86_row_sums::RowSums;
use crate::weights::prefetch::prefetch;
use std::arch::x86_64::*;

/// Bytes of a line of memory.
const LINE: usize = 64;

/// Fetches as many bytes ahead as a block has.
#[inline(always)]
fn prefetch_block<const BYTES: usize>(at: *const u8) {
    (0..BYTES.div_ceil(LINE)).for_each(|line| prefetch(at.wrapping_add(line * LINE)));
}

/// Eight bytes as f32.
#[inline(always)]
unsafe fn bytes_as_f32(bytes: [u8; 8]) -> __m256 {
    // SAFETY: the caller has checked the machine; so in all of this file.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(i64::from_le_bytes(bytes)))) }
}

/// The f16 at `bytes` in all lanes, as f32.
#[inline(always)]
unsafe fn broadcast_f16(bytes: *const u8) -> __m256 {
    unsafe { _mm256_cvtph_ps(_mm_set1_epi16(bytes.cast::<i16>().read_unaligned())) }
}

/// Subtracts the minima of a Q4_K or Q5_K block, and returns its factors.
#[inline(always)]
unsafe fn factors_of_block<const TOKENS: usize>(step: usize, block: *const u8, sums: &mut RowSums<TOKENS>) -> __m256 {
    unsafe {
        let (scales, minima) = scales_and_minima(&*block.add(4).cast());
        sums.subtract(step, _mm256_mul_ps(broadcast_f16(block.add(2)), bytes_as_f32(minima)));
        _mm256_mul_ps(broadcast_f16(block), bytes_as_f32(scales))
    }
}

/// The four bits of a group of a Q4_K or Q5_K block: the low or the high halves of the 32 bytes that two groups share.
#[inline(always)]
unsafe fn nibbles_of_group(packed: *const u8, group: usize) -> Numbers {
    unsafe {
        let packed = packed.add(32 * (group / 2));
        let packed = [bytes(packed), bytes(packed.add(16))];
        packed.map(|packed| if group.is_multiple_of(2) { low_bits(packed) } else { high_bits(packed) })
    }
}

/// Adds a row of Q4_K blocks to the sums.
#[inline(always)]
pub(super) unsafe fn q4_k<const TOKENS: usize, D: DotProduct>(
    row: *const u8,
    columns: usize,
    sums: &mut RowSums<TOKENS>,
) {
    unsafe {
        for step in 0..columns / STEP {
            let block = row.add(step * 144);
            prefetch_block::<144>(block);
            let factors = factors_of_block(step, block, sums);
            let read = |group| nibbles_of_group(block.add(16), group);
            sums.add((step, PARTS), factors, read, |_, w, x| D::small(w, x));
        }
    }
}

/// Adds a row of Q5_K blocks to the sums.
#[inline(always)]
pub(super) unsafe fn q5_k<const TOKENS: usize, D: DotProduct>(
    row: *const u8,
    columns: usize,
    sums: &mut RowSums<TOKENS>,
) {
    unsafe {
        for step in 0..columns / STEP {
            let block = row.add(step * 176);
            prefetch_block::<176>(block);
            let factors = factors_of_block(step, block, sums);
            // The fifth bits of group `g` are bits `g` of 32 bytes.
            let fifth_bits = [bytes(block.add(16)), bytes(block.add(32))];
            let read = |group: usize| {
                let places = |left: usize| _mm_cvtsi32_si128(left as i32);
                let fifth = fifth_bits.map(|bits| match group {
                    0..4 => _mm_sll_epi16(bits, places(4 - group)),
                    _ => _mm_srl_epi16(bits, places(group - 4)),
                });
                let low = nibbles_of_group(block.add(48), group);
                [0, 1].map(|half| _mm_or_si128(low[half], _mm_and_si128(fifth[half], _mm_set1_epi8(16))))
            };
            sums.add((step, PARTS), factors, read, |_, w, x| D::small(w, x));
        }
    }
}

/// The numbers of 32 values of a Q6_K block: four bits of each, then two.
#[inline(always)]
unsafe fn six_bits(block: *const u8, group: usize) -> Numbers {
    let (half, quarter) = (group / 4, group % 4);
    unsafe {
        let packed = block.add(64 * half + 32 * (quarter % 2));
        let bits = block.add(128 + 32 * half);
        [0, 16].map(|at| {
            let (packed, bits) = (bytes(packed.add(at)), bytes(bits.add(at)));
            let low = if quarter < 2 { low_bits(packed) } else { high_bits(packed) };
            let high = match quarter {
                0 => _mm_slli_epi16::<4>(bits),
                1 => _mm_slli_epi16::<2>(bits),
                2 => bits,
                _ => _mm_srli_epi16::<2>(bits),
            };
            _mm_or_si128(low, _mm_and_si128(high, _mm_set1_epi8(0x30)))
        })
    }
}

/// Four sums of the products of two halves, each times a scale: sums of two products are multiplied with it before they become
/// sums of four.
#[inline(always)]
unsafe fn scaled(w: Numbers, x: Numbers, scales: Numbers) -> __m128i {
    unsafe {
        let first = _mm_madd_epi16(_mm_maddubs_epi16(w[0], x[0]), scales[0]);
        _mm_add_epi32(first, _mm_madd_epi16(_mm_maddubs_epi16(w[1], x[1]), scales[1]))
    }
}

/// The 16 bits at byte `place` of `numbers`, in all lanes.
#[inline(always)]
unsafe fn places_of(numbers: __m128i, place: i16) -> __m128i {
    unsafe { _mm_shuffle_epi8(numbers, _mm_set1_epi16(place | (place + 1) << 8)) }
}

/// Adds a row of Q6_K blocks to the sums.
#[inline(always)]
pub(super) unsafe fn q6_k<const TOKENS: usize>(row: *const u8, columns: usize, sums: &mut RowSums<TOKENS>) {
    unsafe {
        for step in 0..columns / STEP {
            let block = row.add(step * 210);
            prefetch_block::<210>(block);
            let (scales, d) = (bytes(block.add(192)), broadcast_f16(block.add(208)));
            let minimum = _mm256_mul_ps(d, _mm256_set1_ps(32.0));
            let eight = |scales| _mm256_mul_ps(minimum, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(scales)));
            sums.subtract_halves(step, [eight(scales), eight(_mm_unpackhi_epi64(scales, scales))]);
            let wide = [_mm_cvtepi8_epi16(scales), _mm_cvtepi8_epi16(_mm_unpackhi_epi64(scales, scales))];
            let dot = |group: usize, w: Numbers, x: Numbers| {
                let places = 4 * (group % 4) as i16;
                let scales = [places, places + 2].map(|place| places_of(wide[group / 4], place));
                scaled(w, x, scales)
            };
            sums.add((step, PARTS), d, |group| six_bits(block, group), dot);
        }
    }
}
