//! Block types of 256 values, whose groups of 16 or 32 have small whole numbers as scales and minima.

use super::unpacked_block::{UnpackedBlock, field, mapped, scale};

/// Two bits of each value: bits `2 i` of 32 bytes are those of the `i`-th 32 values of each half.
#[inline(always)]
fn pairs_of_bits(packed: &[u8; 64]) -> [[i8; 16]; 16] {
    let mut quants = [[0; 16]; 16];
    for (quants, packed) in quants.as_flattened_mut().chunks_exact_mut(128).zip(packed.chunks_exact(32)) {
        for (j, byte) in packed.iter().enumerate() {
            quants[j] = (byte & 3) as i8;
            quants[j + 32] = (byte >> 2 & 3) as i8;
            quants[j + 64] = (byte >> 4 & 3) as i8;
            quants[j + 96] = (byte >> 6) as i8;
        }
    }
    quants
}

/// Four bits of each value: of 64 values, the first 32 are in the low halves of 32 bytes.
#[inline(always)]
fn nibbles(packed: &[u8; 128]) -> [[i8; 32]; 8] {
    let mut quants = [[0; 32]; 8];
    for (quants, packed) in quants.as_flattened_mut().chunks_exact_mut(64).zip(packed.chunks_exact(32)) {
        for (j, byte) in packed.iter().enumerate() {
            quants[j] = (byte & 0xf) as i8;
            quants[j + 32] = (byte >> 4) as i8;
        }
    }
    quants
}

/// 16 scales and minima of 4 bits, values of 2 bits, their scale and that of the minima.
#[inline(always)]
pub(super) fn q2_k(block: &[u8; 84]) -> UnpackedBlock<16, 16> {
    let scales = field::<0, 16>(block);
    let (d, d_minimum) = (scale(field::<80, 2>(block)), scale(field::<82, 2>(block)));
    UnpackedBlock {
        quants: pairs_of_bits(field::<16, 64>(block)),
        factors: mapped(scales, |scale| d * f32::from(scale & 0xf)),
        minima: mapped(scales, |scale| d_minimum * f32::from(scale >> 4)),
    }
}

/// Third bits, two bits as in [`q2_k`], 16 scales of 6 bits from -32 to 31, and their scale. Bits `i` of 32 bytes are the
/// third bits of the `i`-th 32 values: four is subtracted where they are not set.
#[inline(always)]
pub(super) fn q3_k(block: &[u8; 110]) -> UnpackedBlock<16, 16> {
    let (high, d) = (field::<0, 32>(block), scale(field::<108, 2>(block)));
    let mut quants = pairs_of_bits(field::<32, 64>(block));
    for (part, quants) in quants.as_flattened_mut().chunks_exact_mut(32).enumerate() {
        for (quant, high) in quants.iter_mut().zip(high) {
            *quant -= ((!high >> part & 1) << 2) as i8;
        }
    }
    UnpackedBlock {
        quants,
        factors: mapped(&q3_k_scales(field::<96, 12>(block)), |scale| d * f32::from(scale)),
        minima: [0.0; 16],
    }
}

/// Eight bytes hold the low four bits of scales `g` and `g + 8`, four the high two bits of scales `g`, `g + 4`, ...
#[inline(always)]
fn q3_k_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|g| {
        let low = packed[g % 8] >> (4 * (g / 8)) & 0xf;
        let high = packed[8 + g % 4] >> (2 * (g / 4)) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// A scale, that of the minima, eight scales and minima of 6 bits, and values of 4 bits.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144]) -> UnpackedBlock<8, 32> {
    let (factors, minima) = factors_and_minima(field::<0, 16>(block));
    UnpackedBlock { quants: nibbles(field::<16, 128>(block)), factors, minima }
}

/// As [`q4_k`], with fifth bits: bits `i` of 32 bytes are those of the `i`-th 32 values.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176]) -> UnpackedBlock<8, 32> {
    let (factors, minima) = factors_and_minima(field::<0, 16>(block));
    let mut quants = nibbles(field::<48, 128>(block));
    for (part, quants) in quants.iter_mut().enumerate() {
        for (quant, high) in quants.iter_mut().zip(field::<16, 32>(block)) {
            *quant |= ((high >> part & 1) << 4) as i8;
        }
    }
    UnpackedBlock { quants, factors, minima }
}

/// Those of a Q4_K or Q5_K block, from its first 16 bytes.
#[inline(always)]
fn factors_and_minima(head: &[u8; 16]) -> ([f32; 8], [f32; 8]) {
    let (d, d_minimum) = (scale(field::<0, 2>(head)), scale(field::<2, 2>(head)));
    let (scales, minima) = scales_and_minima(field::<4, 12>(head));
    (mapped(&scales, |scale| d * f32::from(scale)), mapped(&minima, |minimum| d_minimum * f32::from(minimum)))
}

/// Eight scales and eight minima of 6 bits, from 12 bytes: four bytes of scales and four of minima, whose upper two bits
/// belong to the later four, and four bytes with the low halves of those. Four bytes at a time.
#[inline(always)]
pub(super) fn scales_and_minima(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let word =
        |start: usize| u32::from_le_bytes([packed[start], packed[start + 1], packed[start + 2], packed[start + 3]]);
    let (scales, minima, low) = (word(0), word(4), word(8));
    let all = |first: u32, low: u32| {
        let (early, late) = (first & 0x3f3f_3f3f, low & 0x0f0f_0f0f | first >> 2 & 0x3030_3030);
        (u64::from(early) | u64::from(late) << 32).to_le_bytes()
    };
    (all(scales, low), all(minima, low >> 4))
}

/// Low four bits, high two bits, 16 scales of 8 bits, and their scale: values from -32 to 31. Of each half, 64 bytes have the
/// low bits of 128 values, the first 64 in their low halves, and 32 bytes the high bits, two for each 32 values.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210]) -> UnpackedBlock<16, 16> {
    let (low, mut quants) = (field::<0, 128>(block), pairs_of_bits(field::<128, 64>(block)));
    for (half, quants) in quants.as_flattened_mut().chunks_exact_mut(128).enumerate() {
        for (j, byte) in low[64 * half..][..64].iter().enumerate() {
            quants[j] = ((quants[j] << 4) | (byte & 0xf) as i8) - 32;
            quants[j + 64] = ((quants[j + 64] << 4) | (byte >> 4) as i8) - 32;
        }
    }
    let d = scale(field::<208, 2>(block));
    let factors = mapped(field::<192, 16>(block), |scale| d * f32::from(scale as i8));
    UnpackedBlock { quants, factors, minima: [0.0; 16] }
}
