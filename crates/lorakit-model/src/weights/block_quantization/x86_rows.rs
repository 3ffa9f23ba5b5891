//! Products of rows of blocks with tokens of 8 bits by the integer instructions of x86: the unsigned numbers of a weight
//! times the signed ones of a token, four products to a sum.
//!
//! What is below is `#[inline(always)]`, so that it becomes part of the functions at the end, which are compiled for the
//! instructions that they name. Sums have the same order whatever the instructions, and so have equal values.

use super::block_type::BlockType;
use super::blocks_of_32::IQ4_NL;
use super::blocks_of_256::scales_and_minima;
use super::eight_bit_tokens::{EightBitToken, EightBitTokens, GROUP, PARTS, STEP};
use std::arch::x86_64::*;

/// How 32 pairs are multiplied and added to 8 sums.
trait DotProduct {
    /// The sums of four products each: `unsigned`, at most 128, by `signed`, at least -127.
    ///
    /// # Safety
    /// The machine must have its instructions.
    unsafe fn dot(unsigned: __m256i, signed: __m256i) -> __m256i;
}

/// By AVX2: no sum of two products leaves 16 bits.
struct Avx2;

/// By AVX-512 VNNI, in vectors of 256 bits.
struct Avx512Vnni;

/// By AVX-VNNI.
struct AvxVnni;

impl DotProduct for Avx2 {
    #[inline(always)]
    unsafe fn dot(unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: the caller has checked the machine; so in all of this file.
        unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(unsigned, signed), _mm256_set1_epi16(1)) }
    }
}

impl DotProduct for Avx512Vnni {
    #[inline(always)]
    unsafe fn dot(unsigned: __m256i, signed: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_epi32(_mm256_setzero_si256(), unsigned, signed) }
    }
}

impl DotProduct for AvxVnni {
    #[inline(always)]
    unsafe fn dot(unsigned: __m256i, signed: __m256i) -> __m256i {
        unsafe { _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), unsigned, signed) }
    }
}

/// The running sums of one row with some tokens: those of even and of odd groups, so that one need not wait for the other.
struct RowSums<'a, const TOKENS: usize> {
    tokens: [EightBitToken<'a>; TOKENS],
    lanes: [[__m256; 2]; TOKENS],
}

/// For each group of a step, the weights' factor times each token's scale. Not with the sums: what is read at a place that
/// the compiler does not know is in memory, and all that is beside it.
struct StepScales<const TOKENS: usize> {
    step: usize,
    scales: [[f32; PARTS]; TOKENS],
}

impl<'a, const TOKENS: usize> RowSums<'a, TOKENS> {
    #[inline(always)]
    unsafe fn new(tokens: [EightBitToken<'a>; TOKENS]) -> Self {
        Self { tokens, lanes: [[unsafe { _mm256_setzero_ps() }; 2]; TOKENS] }
    }

    /// Starts a step whose groups have these factors and minima.
    #[inline(always)]
    unsafe fn begin(&mut self, step: usize, factors: __m256, minima: __m256) -> StepScales<TOKENS> {
        unsafe {
            for t in 0..TOKENS {
                let sums = _mm256_loadu_ps(self.tokens[t].sums.as_ptr().add(step * PARTS));
                self.lanes[t][0] = _mm256_fnmadd_ps(minima, sums, self.lanes[t][0]);
            }
            self.scales(step, factors)
        }
    }

    /// The same for a type whose groups are 16 values: their minima.
    #[inline(always)]
    unsafe fn begin_halves(&mut self, step: usize, factors: __m256, minima: [__m256; 2]) -> StepScales<TOKENS> {
        unsafe {
            for t in 0..TOKENS {
                let sums = self.tokens[t].half_sums.as_ptr().add(step * PARTS * 2);
                let (even, odd) = (_mm256_loadu_ps(sums), _mm256_loadu_ps(sums.add(PARTS)));
                self.lanes[t][0] = _mm256_fnmadd_ps(minima[0], even, self.lanes[t][0]);
                self.lanes[t][1] = _mm256_fnmadd_ps(minima[1], odd, self.lanes[t][1]);
            }
            self.scales(step, factors)
        }
    }

    #[inline(always)]
    unsafe fn scales(&self, step: usize, factors: __m256) -> StepScales<TOKENS> {
        let mut scales = [[0.0; PARTS]; TOKENS];
        for (scales, token) in scales.iter_mut().zip(&self.tokens) {
            unsafe {
                let of_token = _mm256_loadu_ps(token.scales.as_ptr().add(step * PARTS));
                _mm256_storeu_ps(scales.as_mut_ptr(), _mm256_mul_ps(factors, of_token));
            }
        }
        StepScales { step, scales }
    }

    /// Adds the products of a group: `dot` makes 8 sums of the token's 32 numbers. `LANES` is the group's number modulo 2, known
    /// to the compiler so that sums stay in registers.
    #[inline(always)]
    unsafe fn add<const LANES: usize>(
        &mut self,
        at: &StepScales<TOKENS>,
        part: usize,
        dot: impl Fn(__m256i) -> __m256i,
    ) {
        unsafe {
            for t in 0..TOKENS {
                let token = self.tokens[t].quants.as_ptr().add(at.step * STEP + part * GROUP);
                let sums = _mm256_cvtepi32_ps(dot(_mm256_loadu_si256(token.cast())));
                let scale = _mm256_broadcast_ss(&*at.scales[t].as_ptr().add(part));
                self.lanes[t][LANES] = _mm256_fmadd_ps(scale, sums, self.lanes[t][LANES]);
            }
        }
    }

    /// Adds the products of a group of numbers from 0 to 63.
    #[inline(always)]
    unsafe fn add_unsigned<D: DotProduct, const LANES: usize>(
        &mut self,
        at: &StepScales<TOKENS>,
        part: usize,
        weights: __m256i,
    ) {
        unsafe { self.add::<LANES>(at, part, |token| D::dot(weights, token)) }
    }

    /// Adds the products of a group of signed numbers: their magnitudes times the token's numbers with their signs.
    #[inline(always)]
    unsafe fn add_signed<D: DotProduct, const LANES: usize>(
        &mut self,
        at: &StepScales<TOKENS>,
        part: usize,
        weights: __m256i,
    ) {
        unsafe {
            let magnitudes = _mm256_abs_epi8(weights);
            self.add::<LANES>(at, part, |token| D::dot(magnitudes, _mm256_sign_epi8(token, weights)));
        }
    }

    #[inline(always)]
    unsafe fn add_numbers<D: DotProduct, const LANES: usize>(
        &mut self,
        at: &StepScales<TOKENS>,
        part: usize,
        weights: __m256i,
        numbers: Numbers,
    ) {
        unsafe {
            match numbers {
                Numbers::Signed => self.add_signed::<D, LANES>(at, part, weights),
                Numbers::Above(_) | Numbers::Minimum => self.add_unsigned::<D, LANES>(at, part, weights),
            }
        }
    }

    /// Adds the products of two groups of 16 numbers from 0 to 63, each times its own of the 16 `scales`: sums of two products
    /// are multiplied with them before they become sums of four.
    #[inline(always)]
    unsafe fn add_scaled<const LANES: usize>(
        &mut self,
        at: &StepScales<TOKENS>,
        part: usize,
        weights: __m256i,
        scales: __m128i,
    ) {
        unsafe {
            let places = _mm_add_epi8(_mm_set_epi64x(0x0101_0101_0101_0101, 0), _mm_set1_epi8(2 * part as i8));
            let scales = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(scales, places));
            self.add::<LANES>(at, part, |token| _mm256_madd_epi16(_mm256_maddubs_epi16(weights, token), scales));
        }
    }

    /// Each token's product with the row.
    #[inline(always)]
    unsafe fn totals(&self) -> [f32; TOKENS] {
        let mut totals = [0.0; TOKENS];
        unsafe {
            for (total, [even, odd]) in totals.iter_mut().zip(self.lanes) {
                let eight = _mm256_add_ps(even, odd);
                let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                *total = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
            }
        }
        totals
    }
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
            BlockType::Q4_0 => small_blocks::<18, TOKENS, D>(row, columns, sums, Numbers::Above(8.0), q4_0),
            BlockType::Q4_1 => small_blocks::<20, TOKENS, D>(row, columns, sums, Numbers::Minimum, q4_1),
            BlockType::Q5_0 => small_blocks::<22, TOKENS, D>(row, columns, sums, Numbers::Above(16.0), q5_0),
            BlockType::Q5_1 => small_blocks::<24, TOKENS, D>(row, columns, sums, Numbers::Minimum, q5_1),
            BlockType::Q8_0 => small_blocks::<34, TOKENS, D>(row, columns, sums, Numbers::Signed, q8_0),
            BlockType::Iq4Nl => small_blocks::<18, TOKENS, D>(row, columns, sums, Numbers::Signed, iq4_nl),
            BlockType::Q4K => q4_k::<TOKENS, D>(row, columns, sums),
            BlockType::Q5K => q5_k::<TOKENS, D>(row, columns, sums),
            BlockType::Q6K => q6_k::<TOKENS>(row, columns, sums),
            BlockType::Q2K | BlockType::Q3K => unreachable!("these types have no integer products"),
        }
    }
}

/// What the numbers of a block of 32 values stand for.
#[derive(Clone, Copy)]
enum Numbers {
    /// Themselves.
    Signed,
    /// Unsigned, for themselves less this.
    Above(f32),
    /// Unsigned, for what is added to the minimum, which comes after the block's scale.
    Minimum,
}

/// Rows of a type whose blocks have 32 values and `BYTES` bytes, the first two of which are the scale. `read` gives a block's
/// numbers.
#[inline(always)]
unsafe fn small_blocks<const BYTES: usize, const TOKENS: usize, D: DotProduct>(
    row: *const u8,
    columns: usize,
    sums: &mut RowSums<TOKENS>,
    numbers: Numbers,
    read: impl Fn(*const u8) -> __m256i,
) {
    unsafe {
        for step in 0..columns.div_ceil(STEP) {
            let parts = PARTS.min(columns / GROUP - step * PARTS);
            let blocks = row.add(step * PARTS * BYTES);
            let factors = halves::<BYTES>(blocks, parts);
            let minima = match numbers {
                Numbers::Signed => _mm256_setzero_ps(),
                Numbers::Above(zero) => _mm256_mul_ps(factors, _mm256_set1_ps(zero)),
                Numbers::Minimum => _mm256_sub_ps(_mm256_setzero_ps(), halves::<BYTES>(blocks.add(2), parts)),
            };
            let at = sums.begin(step, factors, minima);
            for pair in 0..parts / 2 {
                let block = blocks.add(2 * pair * BYTES);
                sums.add_numbers::<D, 0>(&at, 2 * pair, read(block), numbers);
                sums.add_numbers::<D, 1>(&at, 2 * pair + 1, read(block.add(BYTES)), numbers);
            }
            if parts % 2 == 1 {
                sums.add_numbers::<D, 0>(&at, parts - 1, read(blocks.add((parts - 1) * BYTES)), numbers);
            }
        }
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
unsafe fn nibbles(packed: *const u8) -> __m256i {
    unsafe {
        let packed = _mm_loadu_si128(packed.cast());
        let both = _mm256_set_m128i(_mm_srli_epi16::<4>(packed), packed);
        _mm256_and_si256(both, _mm256_set1_epi8(0xf))
    }
}

/// 16 in each of 32 bytes whose bit is set.
#[inline(always)]
unsafe fn fifth_bits(bits: *const u8) -> __m256i {
    unsafe {
        let bits = _mm256_set1_epi32(bits.cast::<i32>().read_unaligned());
        // Byte `j` of the vector gets byte `j / 8` of the bits, of which all but bit `j % 8` are set then.
        let places = _mm256_set_epi64x(0x0303_0303_0303_0303, 0x0202_0202_0202_0202, 0x0101_0101_0101_0101, 0);
        let others = _mm256_set1_epi64x(0x7fbf_dfef_f7fb_fdfe);
        let filled = _mm256_or_si256(_mm256_shuffle_epi8(bits, places), others);
        _mm256_and_si256(_mm256_cmpeq_epi8(filled, _mm256_set1_epi8(-1)), _mm256_set1_epi8(16))
    }
}

// The functions that read a block of 32 values are not `unsafe`, so that they can be given to `small_blocks`, which alone
// calls them: with a whole block, on a machine that has the instructions.

/// The numbers of a Q4_0 block.
#[inline(always)]
fn q4_0(block: *const u8) -> __m256i {
    unsafe { nibbles(block.add(2)) }
}

/// The numbers of a Q4_1 block.
#[inline(always)]
fn q4_1(block: *const u8) -> __m256i {
    unsafe { nibbles(block.add(4)) }
}

/// The numbers of a Q5_0 block.
#[inline(always)]
fn q5_0(block: *const u8) -> __m256i {
    unsafe { _mm256_or_si256(nibbles(block.add(6)), fifth_bits(block.add(2))) }
}

/// The numbers of a Q5_1 block.
#[inline(always)]
fn q5_1(block: *const u8) -> __m256i {
    unsafe { _mm256_or_si256(nibbles(block.add(8)), fifth_bits(block.add(4))) }
}

/// The numbers of a Q8_0 block.
#[inline(always)]
fn q8_0(block: *const u8) -> __m256i {
    unsafe { _mm256_loadu_si256(block.add(2).cast()) }
}

/// The numbers of an IQ4_NL block.
#[inline(always)]
fn iq4_nl(block: *const u8) -> __m256i {
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(IQ4_NL.as_ptr().cast()));
        _mm256_shuffle_epi8(table, nibbles(block.add(2)))
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

/// Starts a step by the head of a Q4_K or Q5_K block.
#[inline(always)]
unsafe fn begin_block<const TOKENS: usize>(
    step: usize,
    block: *const u8,
    sums: &mut RowSums<TOKENS>,
) -> StepScales<TOKENS> {
    unsafe {
        let (scales, minima) = scales_and_minima(&*block.add(4).cast());
        let factors = _mm256_mul_ps(broadcast_f16(block), bytes_as_f32(scales));
        sums.begin(step, factors, _mm256_mul_ps(broadcast_f16(block.add(2)), bytes_as_f32(minima)))
    }
}

#[inline(always)]
unsafe fn q4_k<const TOKENS: usize, D: DotProduct>(row: *const u8, columns: usize, sums: &mut RowSums<TOKENS>) {
    unsafe {
        let low = _mm256_set1_epi8(0xf);
        for step in 0..columns / STEP {
            let block = row.add(step * 144);
            let at = begin_block(step, block, sums);
            for pair in 0..PARTS / 2 {
                let packed = _mm256_loadu_si256(block.add(16 + 32 * pair).cast());
                sums.add_unsigned::<D, 0>(&at, 2 * pair, _mm256_and_si256(packed, low));
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low);
                sums.add_unsigned::<D, 1>(&at, 2 * pair + 1, high);
            }
        }
    }
}

#[inline(always)]
unsafe fn q5_k<const TOKENS: usize, D: DotProduct>(row: *const u8, columns: usize, sums: &mut RowSums<TOKENS>) {
    unsafe {
        let (low, fifth) = (_mm256_set1_epi8(0xf), _mm256_set1_epi8(16));
        for step in 0..columns / STEP {
            let block = row.add(step * 176);
            let at = begin_block(step, block, sums);
            // The fifth bits of the next pair of groups are bits 0 and 1 of each byte.
            let mut bits = _mm256_loadu_si256(block.add(16).cast());
            for pair in 0..PARTS / 2 {
                let packed = _mm256_loadu_si256(block.add(48 + 32 * pair).cast());
                let high = _mm256_and_si256(_mm256_slli_epi16::<4>(bits), fifth);
                sums.add_unsigned::<D, 0>(&at, 2 * pair, _mm256_or_si256(_mm256_and_si256(packed, low), high));
                let packed = _mm256_and_si256(_mm256_srli_epi16::<4>(packed), low);
                let high = _mm256_and_si256(_mm256_slli_epi16::<3>(bits), fifth);
                sums.add_unsigned::<D, 1>(&at, 2 * pair + 1, _mm256_or_si256(packed, high));
                bits = _mm256_srli_epi16::<2>(bits);
            }
        }
    }
}

/// The low four bits of each byte of `low`, with bits 4 and 5 of those of `high`.
#[inline(always)]
unsafe fn six_bits(low: __m256i, high: __m256i) -> __m256i {
    unsafe {
        let low = _mm256_and_si256(low, _mm256_set1_epi8(0xf));
        _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi8(0x30)))
    }
}

#[inline(always)]
unsafe fn q6_k<const TOKENS: usize>(row: *const u8, columns: usize, sums: &mut RowSums<TOKENS>) {
    unsafe {
        for step in 0..columns / STEP {
            let block = row.add(step * 210);
            let (scales, d) = (_mm_loadu_si128(block.add(192).cast()), broadcast_f16(block.add(208)));
            let minimum = _mm256_mul_ps(d, _mm256_set1_ps(32.0));
            let eight = |scales| _mm256_mul_ps(minimum, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(scales)));
            let at = sums.begin_halves(step, d, [eight(scales), eight(_mm_unpackhi_epi64(scales, scales))]);
            for half in 0..2 {
                let packed = block.add(64 * half);
                let bits = _mm256_loadu_si256(block.add(128 + 32 * half).cast());
                let all =
                    [_mm256_slli_epi16::<4>(bits), _mm256_slli_epi16::<2>(bits), bits, _mm256_srli_epi16::<2>(bits)];
                let first = _mm256_loadu_si256(packed.cast());
                let second = _mm256_loadu_si256(packed.add(32).cast());
                let packed = [first, second, _mm256_srli_epi16::<4>(first), _mm256_srli_epi16::<4>(second)];
                for pair in 0..2 {
                    let part = 4 * half + 2 * pair;
                    sums.add_scaled::<0>(&at, part, six_bits(packed[2 * pair], all[2 * pair]), scales);
                    sums.add_scaled::<1>(&at, part + 1, six_bits(packed[2 * pair + 1], all[2 * pair + 1]), scales);
                }
            }
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
