//! Block types of 32 values, which are one group.

use super::unpacked_block::{UnpackedBlock, field, mapped, scale};
use crate::weights::four_bit_levels::FourBitLevels;

type Block = UnpackedBlock<1, 32>;

/// The values that IQ4_NL's 4 bits stand for.
pub(super) const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The four bits of each value: a byte holds those of value `j`, and above them those of value `j + 16`.
#[inline(always)]
fn nibbles(packed: &[u8; 16]) -> [i8; 32] {
    let mut quants = [0; 32];
    quants[..16].copy_from_slice(&mapped(packed, |byte| (byte & 0xf) as i8));
    quants[16..].copy_from_slice(&mapped(packed, |byte| (byte >> 4) as i8));
    quants
}

/// The same with the fifth bit of value `j` from bit `j` of `high`.
#[inline(always)]
fn five_bits(high: &[u8; 4], packed: &[u8; 16]) -> [i8; 32] {
    let mut quants = nibbles(packed);
    for (j, quant) in quants.iter_mut().enumerate() {
        let set = high[j / 8] & (1 << (j % 8)) != 0;
        *quant |= if set { 16 } else { 0 };
    }
    quants
}

/// A scale, and values from -8 to 7.
#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18]) -> Block {
    let quants = mapped(&nibbles(field::<2, 16>(block)), |q| q - 8);
    Block { quants: [quants], factors: [scale(field::<0, 2>(block))], minima: [0.0] }
}

/// A scale, a minimum, and values from 0 to 15.
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20]) -> Block {
    let (factor, minimum) = (scale(field::<0, 2>(block)), scale(field::<2, 2>(block)));
    Block { quants: [nibbles(field::<4, 16>(block))], factors: [factor], minima: [-minimum] }
}

/// A scale, fifth bits, and values from -16 to 15.
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22]) -> Block {
    let quants = mapped(&five_bits(field::<2, 4>(block), field::<6, 16>(block)), |q| q - 16);
    Block { quants: [quants], factors: [scale(field::<0, 2>(block))], minima: [0.0] }
}

/// A scale, a minimum, fifth bits, and values from 0 to 31.
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24]) -> Block {
    let (factor, minimum) = (scale(field::<0, 2>(block)), scale(field::<2, 2>(block)));
    let quants = five_bits(field::<4, 4>(block), field::<8, 16>(block));
    Block { quants: [quants], factors: [factor], minima: [-minimum] }
}

/// A scale, and values from -128 to 127.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34]) -> Block {
    let quants = mapped(field::<2, 32>(block), |byte| byte as i8);
    Block { quants: [quants], factors: [scale(field::<0, 2>(block))], minima: [0.0] }
}

/// A scale, and the places of values in [`IQ4_NL`].
#[inline(always)]
pub(super) fn iq4_nl(block: &[u8; 18]) -> Block {
    let quants = mapped(&nibbles(field::<2, 16>(block)), |q| IQ4_NL[q as usize & 0xf]);
    Block { quants: [quants], factors: [scale(field::<0, 2>(block))], minima: [0.0] }
}

/// Writes the values of IQ4_NL blocks: the compiler makes no vectors of what looks up its values one by one.
pub(super) fn write_iq4_nl(blocks: &[u8], values: &mut [f32]) {
    for (block, values) in blocks.as_chunks::<18>().0.iter().zip(values.as_chunks_mut::<32>().0) {
        let factor = scale(field::<0, 2>(block));
        let levels = FourBitLevels(mapped(&IQ4_NL, |level| factor * f32::from(level)));
        levels.write_halves(field::<2, 16>(block), values);
    }
}
