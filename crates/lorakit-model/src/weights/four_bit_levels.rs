//! Values of 4 bits that stand for 16 levels, as those of bitsandbytes and of GGML's IQ4_NL do.

use lorakit_lora::kernels::simd::SimdLevel;

/// What each number of 4 bits stands for.
#[derive(Clone, Copy)]
pub(super) struct FourBitLevels(pub(super) [f32; 16]);

impl FourBitLevels {
    /// Writes the level of the upper four bits of each byte, and after it that of the lower ones; of the last byte the upper
    /// ones may be all that is asked for.
    pub(super) fn write_pairs(&self, packed: &[u8], values: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if SimdLevel::current() >= SimdLevel::Avx2 {
            // SAFETY: the machine has AVX2.
            return unsafe { avx2::write_pairs(self, packed, values) };
        }
        self.write_pairs_plain(packed, values);
    }

    /// Writes the levels of the lower four bits of all bytes, and after them those of the upper ones.
    pub(super) fn write_halves(&self, packed: &[u8; 16], values: &mut [f32; 32]) {
        #[cfg(target_arch = "x86_64")]
        if SimdLevel::current() >= SimdLevel::Avx2 {
            // SAFETY: the machine has AVX2.
            return unsafe { avx2::write_halves(self, packed, values) };
        }
        self.write_halves_plain(packed, values);
    }

    #[inline(always)]
    fn lower(&self, byte: u8) -> f32 {
        self.0[usize::from(byte & 15)]
    }

    #[inline(always)]
    fn upper(&self, byte: u8) -> f32 {
        self.0[usize::from(byte >> 4)]
    }

    fn write_pairs_plain(&self, packed: &[u8], values: &mut [f32]) {
        for (pair, &byte) in values.chunks_mut(2).zip(packed) {
            pair.iter_mut().zip([self.upper(byte), self.lower(byte)]).for_each(|(value, level)| *value = level);
        }
    }

    fn write_halves_plain(&self, packed: &[u8; 16], values: &mut [f32; 32]) {
        let (lower, upper) = values.split_at_mut(16);
        for ((lower, upper), &byte) in lower.iter_mut().zip(upper).zip(packed) {
            (*lower, *upper) = (self.lower(byte), self.upper(byte));
        }
    }
}

/// The same, eight levels at a time.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use crate::weights::four_bit_levels::FourBitLevels;
    use std::arch::x86_64::*;

    /// The levels in two vectors.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn halves(levels: &FourBitLevels) -> [__m256; 2] {
        // SAFETY: there are 16 levels, and the instruction needs no alignment.
        unsafe { [_mm256_loadu_ps(levels.0.as_ptr()), _mm256_loadu_ps(levels.0[8..].as_ptr())] }
    }

    /// The levels of the lower four bits of each number: three of them are a place in either half of the levels, and the
    /// fourth, moved to where a sign is, chooses between the halves.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn levels_of([first, second]: [__m256; 2], numbers: __m256i) -> __m256 {
        let (first, second) = (_mm256_permutevar8x32_ps(first, numbers), _mm256_permutevar8x32_ps(second, numbers));
        _mm256_blendv_ps(first, second, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(numbers)))
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    fn store(values: &mut [f32; 8], vector: __m256) {
        // SAFETY: there are eight values, and the instruction needs no alignment.
        unsafe { _mm256_storeu_ps(values.as_mut_ptr(), vector) }
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn write_pairs(levels: &FourBitLevels, packed: &[u8], values: &mut [f32]) {
        let (halves, shifts) = (halves(levels), _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
        let (bytes, values) = (packed.as_chunks::<4>().0, values.as_chunks_mut::<8>());
        for (bytes, values) in bytes.iter().zip(&mut *values.0) {
            let all = _mm256_set1_epi32(i32::from_le_bytes(*bytes));
            store(values, levels_of(halves, _mm256_srlv_epi32(all, shifts)));
        }
        levels.write_pairs_plain(&packed[4 * values.0.len()..], values.1);
    }

    #[target_feature(enable = "avx2")]
    #[inline]
    pub(super) fn write_halves(levels: &FourBitLevels, packed: &[u8; 16], values: &mut [f32; 32]) {
        let halves = halves(levels);
        let [first, second, third, fourth] = values.as_chunks_mut::<8>().0 else { return };
        // SAFETY: there are 16 bytes, and the instruction needs no alignment.
        let bytes = unsafe { _mm_loadu_si128(packed.as_ptr().cast()) };
        let (start, end) = (_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)));
        store(first, levels_of(halves, start));
        store(second, levels_of(halves, end));
        store(third, levels_of(halves, _mm256_srli_epi32::<4>(start)));
        store(fourth, levels_of(halves, _mm256_srli_epi32::<4>(end)));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LEVELS: FourBitLevels =
        FourBitLevels([-1.5, 2.0, 0.25, 7.0, -0.0, 3.0, 11.0, -4.0, 9.0, 0.5, -6.0, 8.0, 1.0, -2.0, 5.0, 12.0]);

    /// Every byte, and numbers of values that fill no vector or end within a byte.
    #[test]
    fn vectors_write_what_plain_operations_write() {
        let packed: Vec<u8> = (0..=255).chain((0..40).map(|at: u8| at.wrapping_mul(37).wrapping_add(11))).collect();
        for count in (0..40).chain([2 * packed.len() - 1, 2 * packed.len()]) {
            let (mut vectors, mut plain) = (vec![f32::NAN; count], vec![9.0; count]);
            LEVELS.write_pairs(&packed[..count.div_ceil(2)], &mut vectors);
            LEVELS.write_pairs_plain(&packed[..count.div_ceil(2)], &mut plain);
            let expected = (0..count).map(|at| LEVELS.0[usize::from(packed[at / 2] >> (4 * (1 - at % 2)) & 15)]);
            assert!(expected.eq(plain.iter().copied()), "{count}");
            assert_eq!(vectors, plain, "{count}");
        }
        for packed in packed.as_chunks::<16>().0 {
            let (mut vectors, mut plain) = ([f32::NAN; 32], [9.0; 32]);
            LEVELS.write_halves(packed, &mut vectors);
            LEVELS.write_halves_plain(packed, &mut plain);
            let number = |at: usize| usize::from(packed[at % 16] >> (4 * (at / 16)) & 15);
            assert!((0..32).all(|at| plain[at] == LEVELS.0[number(at)]));
            assert_eq!(vectors, plain);
        }
    }
}
