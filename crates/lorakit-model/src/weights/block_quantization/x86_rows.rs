//! Products of rows of blocks with tokens of 8 bits by the integer instructions of x86.
//!
//! What they are made of (`x86_dot_product`, `x86_row_sums`, `x86_blocks_of_32`, `x86_blocks_of_256`) is `#[inline(always)]`, so
//! that it becomes part of the functions at the end, which are compiled for the instructions that they name. Sums have the
//! same order whatever the instructions, and so have equal values.

use super::block_type::BlockType;
use super::eight_bit_tokens::EightBitTokens;
use super::x86_blocks_of_32::{ZeroPoint, iq4_nl, q4_0, q4_1, q5_0, q5_1, q8_0, small_blocks};
use super::x86_blocks_of_256::{q4_k, q5_k, q6_k};
use super::x86_dot_product::{Avx2, Avx512Vnni, AvxVnni, DotProduct};
use super::x86_row_sums::RowSums;

/// The sums of one row of blocks.
#[inline(always)]
unsafe fn row<const TOKENS: usize, D: DotProduct>(
    block_type: BlockType,
    row: &[u8],
    columns: usize,
    sums: &mut RowSums<TOKENS>,
) {
    let row = row.as_ptr();
    // SAFETY: the caller has checked the machine; so in all of this file.
    unsafe {
        match block_type {
            BlockType::Q4_0 => small_blocks::<18, TOKENS, D>(row, columns, sums, ZeroPoint::At(8.0), q4_0),
            BlockType::Q4_1 => small_blocks::<20, TOKENS, D>(row, columns, sums, ZeroPoint::Minimum, q4_1),
            BlockType::Q5_0 => small_blocks::<22, TOKENS, D>(row, columns, sums, ZeroPoint::At(16.0), q5_0),
            BlockType::Q5_1 => small_blocks::<24, TOKENS, D>(row, columns, sums, ZeroPoint::Minimum, q5_1),
            BlockType::Q8_0 => small_blocks::<34, TOKENS, D>(row, columns, sums, ZeroPoint::Signed, q8_0),
            BlockType::Iq4Nl => small_blocks::<18, TOKENS, D>(row, columns, sums, ZeroPoint::Signed, iq4_nl),
            BlockType::Q4K => q4_k::<TOKENS, D>(row, columns, sums),
            BlockType::Q5K => q5_k::<TOKENS, D>(row, columns, sums),
            BlockType::Q6K => q6_k::<TOKENS>(row, columns, sums),
            BlockType::Q2K | BlockType::Q3K => unreachable!("these types have no integer products"),
        }
    }
}

/// Tokens that share the reading of a row.
const BLOCK: usize = 4;

/// Rows of quantized blocks, and tokens to multiply them with.
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
