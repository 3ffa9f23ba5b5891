//! Products of rows of blocks with tokens of 8 bits by the integer instructions of x86: the unsigned numbers of a weight
//! times the signed ones of a token, four products to a sum.
//!
//! What is below is `#[inline(always)]`, so that it becomes part of the functions at the end, which are compiled for the
//! instructions that they name. Sums have the same order whatever the instructions, and so have equal values.
//!
//! The sums of eight groups are gathered in one vector before they are multiplied with their scales, which is done once for
//! all of them. Vectors have 128 bits until then: blocks are that small, and older machines make two of a wider one anyway.

use super::block_type::BlockType;
use super::blocks_of_32::IQ4_NL;
use super::blocks_of_256::scales_and_minima;
use super::eight_bit_tokens::{EightBitToken, EightBitTokens, GROUP, PARTS, STEP};
use crate::weights::prefetch::prefetch;
use std::arch::x86_64::*;
use std::ops::Range;

/// Bytes of a line of memory.
const LINE: usize = 64;

/// The 32 numbers of a group.
type Numbers = [__m128i; 2];

/// How the numbers of a group and of a token are multiplied and added to four sums.
trait DotProduct {
    /// The sums of `unsigned`, at most 63, times `signed`, at least -127.
    ///
    /// # Safety
    /// The machine must have its instructions.
    unsafe fn small(unsigned: Numbers, signed: Numbers) -> __m128i;

    /// The same of `unsigned` up to 128.
    ///
    /// # Safety
    /// The machine must have its instructions.
    unsafe fn large(unsigned: Numbers, signed: Numbers) -> __m128i;
}

/// By AVX2.
struct Avx2;

/// By AVX-512 VNNI, in vectors of 128 bits.
struct Avx512Vnni;

/// By AVX-VNNI.
struct AvxVnni;

impl DotProduct for Avx2 {
    #[inline(always)]
    unsafe fn small(unsigned: Numbers, signed: Numbers) -> __m128i {
        // SAFETY: the caller has checked the machine; so in all of this file.
        unsafe {
            // No sum of four products leaves 16 bits.
            let [a, b] = [0, 1].map(|half| _mm_maddubs_epi16(unsigned[half], signed[half]));
            _mm_madd_epi16(_mm_add_epi16(a, b), _mm_set1_epi16(1))
        }
    }

    #[inline(always)]
    unsafe fn large(unsigned: Numbers, signed: Numbers) -> __m128i {
        unsafe {
            // No sum of two does.
            let [a, b] =
                [0, 1].map(|half| _mm_madd_epi16(_mm_maddubs_epi16(unsigned[half], signed[half]), _mm_set1_epi16(1)));
            _mm_add_epi32(a, b)
        }
    }
}

impl DotProduct for Avx512Vnni {
    #[inline(always)]
    unsafe fn small(unsigned: Numbers, signed: Numbers) -> __m128i {
        unsafe { Self::large(unsigned, signed) }
    }

    #[inline(always)]
    unsafe fn large(unsigned: Numbers, signed: Numbers) -> __m128i {
        unsafe {
            let first = _mm_dpbusd_epi32(_mm_setzero_si128(), unsigned[0], signed[0]);
            _mm_dpbusd_epi32(first, unsigned[1], signed[1])
        }
    }
}

impl DotProduct for AvxVnni {
    #[inline(always)]
    unsafe fn small(unsigned: Numbers, signed: Numbers) -> __m128i {
        unsafe { Self::large(unsigned, signed) }
    }

    #[inline(always)]
    unsafe fn large(unsigned: Numbers, signed: Numbers) -> __m128i {
        unsafe {
            let first = _mm_dpbusd_avx_epi32(_mm_setzero_si128(), unsigned[0], signed[0]);
            _mm_dpbusd_avx_epi32(first, unsigned[1], signed[1])
        }
    }
}

/// The running sums of one row with some tokens: a lane of each group of a step.
struct RowSums<'a, const TOKENS: usize> {
    tokens: [EightBitToken<'a>; TOKENS],
    lanes: [__m256; TOKENS],
}

impl<'a, const TOKENS: usize> RowSums<'a, TOKENS> {
    #[inline(always)]
    unsafe fn new(tokens: [EightBitToken<'a>; TOKENS]) -> Self {
        Self { tokens, lanes: [unsafe { _mm256_setzero_ps() }; TOKENS] }
    }

    /// Subtracts the minima of a step's groups.
    #[inline(always)]
    unsafe fn subtract(&mut self, step: usize, minima: __m256) {
        for (lanes, token) in self.lanes.iter_mut().zip(&self.tokens) {
            unsafe {
                let sums = _mm256_loadu_ps(token.sums.as_ptr().add(step * PARTS));
                *lanes = _mm256_fnmadd_ps(minima, sums, *lanes);
            }
        }
    }

    /// The same for a type whose groups are 16 values.
    #[inline(always)]
    unsafe fn subtract_halves(&mut self, step: usize, minima: [__m256; 2]) {
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
    unsafe fn add(
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
    unsafe fn totals(&self) -> [f32; TOKENS] {
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

/// Fetches as many bytes ahead as a block has.
#[inline(always)]
fn prefetch_block<const BYTES: usize>(at: *const u8) {
    (0..BYTES.div_ceil(LINE)).for_each(|line| prefetch(at.wrapping_add(line * LINE)));
}

/// The sums of one row of blocks.
#[inline(always)]
unsafe fn row<const TOKENS: usize, D: DotProduct>(
    block_type: BlockType,
    row: &[u8],
    columns: usize,
    sums: &mut RowSums<TOKENS>,
) {
    let row = row.as_ptr();
    unsafe {
        match block_type {
            BlockType::Q4_0 => small_blocks::<18, TOKENS, D>(row, columns, sums, Zero::At(8.0), q4_0),
            BlockType::Q4_1 => small_blocks::<20, TOKENS, D>(row, columns, sums, Zero::Minimum, q4_1),
            BlockType::Q5_0 => small_blocks::<22, TOKENS, D>(row, columns, sums, Zero::At(16.0), q5_0),
            BlockType::Q5_1 => small_blocks::<24, TOKENS, D>(row, columns, sums, Zero::Minimum, q5_1),
            BlockType::Q8_0 => small_blocks::<34, TOKENS, D>(row, columns, sums, Zero::Signed, q8_0),
            BlockType::Iq4Nl => small_blocks::<18, TOKENS, D>(row, columns, sums, Zero::Signed, iq4_nl),
            BlockType::Q4K => q4_k::<TOKENS, D>(row, columns, sums),
            BlockType::Q5K => q5_k::<TOKENS, D>(row, columns, sums),
            BlockType::Q6K => q6_k::<TOKENS>(row, columns, sums),
            BlockType::Q2K | BlockType::Q3K => unreachable!("these types have no integer products"),
        }
    }
}

/// What the numbers of a block of 32 values stand for.
#[derive(Clone, Copy)]
enum Zero {
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
unsafe fn small_blocks<const BYTES: usize, const TOKENS: usize, D: DotProduct>(
    row: *const u8,
    columns: usize,
    sums: &mut RowSums<TOKENS>,
    zero: Zero,
    read: impl Fn(*const u8) -> Numbers + Copy,
) {
    let (steps, parts) = (columns / STEP, columns % STEP / GROUP);
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
    zero: Zero,
    read: impl Fn(*const u8) -> Numbers,
) {
    unsafe {
        let blocks = row.add(step * PARTS * BYTES);
        // Two blocks have no more than a line and a bit of the next.
        (0..parts.div_ceil(2)).for_each(|pair| prefetch(blocks.wrapping_add(2 * pair * BYTES)));
        let factors = halves::<BYTES>(blocks, parts);
        match zero {
            Zero::Signed => {}
            Zero::At(zero) => sums.subtract(step, _mm256_mul_ps(factors, _mm256_set1_ps(zero))),
            Zero::Minimum => {
                sums.subtract(step, _mm256_sub_ps(_mm256_setzero_ps(), halves::<BYTES>(blocks.add(2), parts)))
            }
        }
        let read = |part: usize| read(blocks.add(part * BYTES));
        match zero {
            Zero::Signed => sums.add((step, parts), factors, read, |_, w, x| signed::<D>(w, x)),
            Zero::At(_) | Zero::Minimum => sums.add((step, parts), factors, read, |_, w, x| D::small(w, x)),
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

/// 16 bytes.
#[inline(always)]
unsafe fn bytes<T>(at: *const T) -> __m128i {
    unsafe { _mm_loadu_si128(at.cast()) }
}

/// The low four bits of each byte.
#[inline(always)]
unsafe fn low_bits(bytes: __m128i) -> __m128i {
    unsafe { _mm_and_si128(bytes, _mm_set1_epi8(0xf)) }
}

/// The high four bits of each byte.
#[inline(always)]
unsafe fn high_bits(bytes: __m128i) -> __m128i {
    unsafe { low_bits(_mm_srli_epi16::<4>(bytes)) }
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
fn q4_0(block: *const u8) -> Numbers {
    unsafe { nibbles(block.add(2)) }
}

/// The numbers of a Q4_1 block.
#[inline(always)]
fn q4_1(block: *const u8) -> Numbers {
    unsafe { nibbles(block.add(4)) }
}

/// The numbers of a Q5_0 block.
#[inline(always)]
fn q5_0(block: *const u8) -> Numbers {
    unsafe { five_bits(block.add(2), block.add(6)) }
}

/// The numbers of a Q5_1 block.
#[inline(always)]
fn q5_1(block: *const u8) -> Numbers {
    unsafe { five_bits(block.add(4), block.add(8)) }
}

/// The numbers of a Q8_0 block.
#[inline(always)]
fn q8_0(block: *const u8) -> Numbers {
    unsafe { [bytes(block.add(2)), bytes(block.add(18))] }
}

/// The numbers of an IQ4_NL block.
#[inline(always)]
fn iq4_nl(block: *const u8) -> Numbers {
    unsafe {
        let table = bytes(IQ4_NL.as_ptr());
        nibbles(block.add(2)).map(|places| _mm_shuffle_epi8(table, places))
    }
}

/// Eight bytes as f32.
#[inline(always)]
unsafe fn bytes_as_f32(bytes: [u8; 8]) -> __m256 {
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

#[inline(always)]
unsafe fn q4_k<const TOKENS: usize, D: DotProduct>(row: *const u8, columns: usize, sums: &mut RowSums<TOKENS>) {
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

#[inline(always)]
unsafe fn q5_k<const TOKENS: usize, D: DotProduct>(row: *const u8, columns: usize, sums: &mut RowSums<TOKENS>) {
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

#[inline(always)]
unsafe fn q6_k<const TOKENS: usize>(row: *const u8, columns: usize, sums: &mut RowSums<TOKENS>) {
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

/// Tokens that share the reading of a row.
const BLOCK: usize = 4;

/// Rows of quantised blocks, and tokens to multiply them with.
#[derive(Clone, Copy)]
pub(super) struct QuantizedRows<'a> {
    pub(super) block_type: BlockType,
    /// Whole rows.
    pub(super) blocks: &'a [u8],
    pub(super) tokens: &'a EightBitTokens,
}

impl QuantizedRows<'_> {
    /// Writes `[rows, tokens]` products.
    #[inline(always)]
    unsafe fn multiply<D: DotProduct>(self, y: &mut [f32]) {
        let tokens = self.tokens.len();
        let whole = tokens / BLOCK * BLOCK;
        for first in (0..whole).step_by(BLOCK) {
            unsafe { self.multiply_tokens::<BLOCK, D>(first, y) };
        }
        for first in whole..tokens {
            unsafe { self.multiply_tokens::<1, D>(first, y) };
        }
    }

    #[inline(always)]
    unsafe fn multiply_tokens<const TOKENS: usize, D: DotProduct>(self, first: usize, y: &mut [f32]) {
        let (columns, count) = (self.tokens.columns(), self.tokens.len());
        let bytes = columns / self.block_type.block_values() * self.block_type.block_bytes();
        let tokens = std::array::from_fn(|t| self.tokens.token(first + t));
        for (blocks, y) in self.blocks.chunks_exact(bytes).zip(y.chunks_exact_mut(count)) {
            let totals = unsafe {
                let mut sums = RowSums::<TOKENS>::new(tokens);
                row::<TOKENS, D>(self.block_type, blocks, columns, &mut sums);
                sums.totals()
            };
            y[first..first + TOKENS].copy_from_slice(&totals);
        }
    }
}

/// The instructions that these products are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum X86Instructions {
    /// AVX2, FMA and F16C.
    Avx2,
    /// The same and AVX-VNNI.
    AvxVnni,
    /// The same and AVX-512 VNNI and VL.
    Avx512Vnni,
}

impl X86Instructions {
    /// Those that this machine has, in the order in which they are to be preferred.
    pub(super) fn available() -> impl Iterator<Item = Self> {
        let base =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        let vnni = is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl");
        let has = [(Self::Avx512Vnni, vnni), (Self::AvxVnni, is_x86_feature_detected!("avxvnni")), (Self::Avx2, true)];
        has.into_iter().filter(move |(_, there)| base && *there).map(|(instructions, _)| instructions)
    }

    /// `y[r][t] = <row r, token t>`.
    pub(super) fn multiply(self, rows: QuantizedRows, y: &mut [f32]) {
        // SAFETY: only `available` makes these values, of what the machine has.
        unsafe {
            match self {
                Self::Avx2 => multiply_avx2(rows, y),
                Self::AvxVnni => multiply_avx_vnni(rows, y),
                Self::Avx512Vnni => multiply_avx512_vnni(rows, y),
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_avx2(rows: QuantizedRows, y: &mut [f32]) {
    unsafe { rows.multiply::<Avx2>(y) }
}

#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
unsafe fn multiply_avx_vnni(rows: QuantizedRows, y: &mut [f32]) {
    unsafe { rows.multiply::<AvxVnni>(y) }
}

#[target_feature(enable = "avx2,fma,f16c,avx512vnni,avx512vl")]
unsafe fn multiply_avx512_vnni(rows: QuantizedRows, y: &mut [f32]) {
    unsafe { rows.multiply::<Avx512Vnni>(y) }
}
