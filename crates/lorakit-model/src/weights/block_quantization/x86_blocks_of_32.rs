//! The sums of a row of blocks of 32 values, eight of which make a step.

use super::blocks_of_32::IQ4_NL;
use super::eight_bit_tokens::{GROUP, PARTS, STEP};
use super::x86_dot_product::{DotProduct, Numbers, bytes, high_bits, low_bits};
use super::x86_row_sums::RowSums;
use crate::weights::prefetch::prefetch;
use std::arch::x86_64::*;

/// What the numbers of a block of 32 values stand for.
#[derive(Clone, Copy)]
pub(super) enum ZeroPoint {
    /// Themselves: they are signed.
    Signed,
    /// Themselves less this: they are unsigned.
    At(f32),
    /// What is added to the minimum, which comes after the block's scale.
    Minimum,
}

/// Rows of a type whose blocks have 32 values and `BYTES` bytes, the first two of which are the scale. `read` gives a block's
/// numbers.
#[inline(always)]
pub(super) unsafe fn small_blocks<const BYTES: usize, const TOKENS: usize, D: DotProduct>(
    row: *const u8,
    columns: usize,
    sums: &mut RowSums<TOKENS>,
    zero: ZeroPoint,
    read: impl Fn(*const u8) -> Numbers + Copy,
) {
    let (steps, parts) = (columns / STEP, columns % STEP / GROUP);
    // SAFETY: the caller has checked the machine; so in all of this file.
    unsafe {
        for step in 0..steps {
            step_of_blocks::<BYTES, TOKENS, D>(row, (step, PARTS), sums, zero, read);
        }
        if parts > 0 {
            step_of_blocks::<BYTES, TOKENS, D>(row, (steps, parts), sums, zero, read);
        }
    }
}

/// The first `parts` blocks of a step of such a row.
#[inline(always)]
unsafe fn step_of_blocks<const BYTES: usize, const TOKENS: usize, D: DotProduct>(
    row: *const u8,
    (step, parts): (usize, usize),
    sums: &mut RowSums<TOKENS>,
    zero: ZeroPoint,
    read: impl Fn(*const u8) -> Numbers,
) {
    unsafe {
        let blocks = row.add(step * PARTS * BYTES);
        // Two blocks have no more than a line and a bit of the next.
        (0..parts.div_ceil(2)).for_each(|pair| prefetch(blocks.wrapping_add(2 * pair * BYTES)));
        let factors = halves::<BYTES>(blocks, parts);
        match zero {
            ZeroPoint::Signed => {}
            ZeroPoint::At(zero) => sums.subtract(step, _mm256_mul_ps(factors, _mm256_set1_ps(zero))),
            ZeroPoint::Minimum => {
                sums.subtract(step, _mm256_sub_ps(_mm256_setzero_ps(), halves::<BYTES>(blocks.add(2), parts)))
            }
        }
        let read = |part: usize| read(blocks.add(part * BYTES));
        match zero {
            ZeroPoint::Signed => sums.add((step, parts), factors, read, |_, w, x| signed::<D>(w, x)),
            ZeroPoint::At(_) | ZeroPoint::Minimum => sums.add((step, parts), factors, read, |_, w, x| D::small(w, x)),
        }
    }
}

/// The products of signed numbers: their magnitudes times the token's numbers with their signs.
#[inline(always)]
unsafe fn signed<D: DotProduct>(weights: Numbers, token: Numbers) -> __m128i {
    unsafe {
        let with_sign = [0, 1].map(|half| _mm_sign_epi8(token[half], weights[half]));
        D::large(weights.map(|half| _mm_abs_epi8(half)), with_sign)
    }
}

/// The f16 at the starts of up to eight blocks of `BYTES` bytes, then zeros, as f32.
#[inline(always)]
unsafe fn halves<const BYTES: usize>(blocks: *const u8, parts: usize) -> __m256 {
    unsafe {
        let at = |k: usize| blocks.add(k * BYTES).cast::<i16>().read_unaligned();
        let mut all = [0; PARTS];
        if parts == PARTS {
            all = [at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)];
        } else {
            for (k, half) in all.iter_mut().enumerate().take(parts) {
                *half = at(k);
            }
        }
        let [a, b, c, d, e, f, g, h] = all;
        _mm256_cvtph_ps(_mm_set_epi16(h, g, f, e, d, c, b, a))
    }
}

/// The four bits of 32 values of a block: the low halves of 16 bytes, then the high ones.
#[inline(always)]
unsafe fn nibbles(packed: *const u8) -> Numbers {
    unsafe {
        let packed = bytes(packed);
        [low_bits(packed), high_bits(packed)]
    }
}

/// The same with the fifth bits of the values, which are those of four bytes.
#[inline(always)]
unsafe fn five_bits(bits: *const u8, packed: *const u8) -> Numbers {
    unsafe {
        let bits = _mm_set1_epi32(bits.cast::<i32>().read_unaligned());
        let others = _mm_set1_epi64x(0x7fbf_dfef_f7fb_fdfe);
        let [low, high] = nibbles(packed);
        // Byte `j` of a vector gets byte `j / 8` of the bits, of which all but bit `j % 8` are set then.
        let with = |numbers: __m128i, places: __m128i| {
            let filled = _mm_or_si128(_mm_shuffle_epi8(bits, places), others);
            let is_set = _mm_cmpeq_epi8(filled, _mm_set1_epi8(-1));
            _mm_or_si128(numbers, _mm_and_si128(is_set, _mm_set1_epi8(16)))
        };
        [
            with(low, _mm_set_epi64x(0x0101_0101_0101_0101, 0)),
            with(high, _mm_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202)),
        ]
    }
}

// The functions that read a block of 32 values are not `unsafe`, so that they can be given to `small_blocks`, which alone
// calls them: with a whole block, on a machine that has the instructions.

/// The numbers of a Q4_0 block.
#[inline(always)]
pub(super) fn q4_0(block: *const u8) -> Numbers {
    unsafe { nibbles(block.add(2)) }
}

/// The numbers of a Q4_1 block.
#[inline(always)]
pub(super) fn q4_1(block: *const u8) -> Numbers {
    unsafe { nibbles(block.add(4)) }
}

/// The numbers of a Q5_0 block.
#[inline(always)]
pub(super) fn q5_0(block: *const u8) -> Numbers {
    unsafe { five_bits(block.add(2), block.add(6)) }
}

/// The numbers of a Q5_1 block.
#[inline(always)]
pub(super) fn q5_1(block: *const u8) -> Numbers {
    unsafe { five_bits(block.add(4), block.add(8)) }
}

/// The numbers of a Q8_0 block.
#[inline(always)]
pub(super) fn q8_0(block: *const u8) -> Numbers {
    unsafe { [bytes(block.add(2)), bytes(block.add(18))] }
}

/// The numbers of an IQ4_NL block.
#[inline(always)]
pub(super) fn iq4_nl(block: *const u8) -> Numbers {
    unsafe {
        let table = bytes(IQ4_NL.as_ptr());
        nibbles(block.add(2)).map(|places| _mm_shuffle_epi8(table, places))
    }
}
