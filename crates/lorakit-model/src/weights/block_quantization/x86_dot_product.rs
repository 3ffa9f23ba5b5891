//! The products of 32 numbers of a weight with those of a token, by the integer instructions of x86: unsigned numbers times
//! signed ones, four products to a sum. The order of the sums is the same whatever the instructions.
//!
//! Vectors have 128 bits: blocks are that small, and older machines make two of a wider one anyway.

use std::arch::x86_64::*;

/// The 32 numbers of a group.
pub(super) type Numbers = [__m128i; 2];

/// How the numbers of a group and of a token are multiplied and added to four sums.
pub(super) trait DotProduct {
    /// The sums of `unsigned`, at most 63, times `signed`, at least -127.
    ///
    /// # Safety
    /// The machine must have its instructions.
    #[inline(always)]
    unsafe fn small(unsigned: Numbers, signed: Numbers) -> __m128i {
        // SAFETY: the caller has checked the machine; so in all of this file.
        unsafe { Self::large(unsigned, signed) }
    }

    /// The same of `unsigned` up to 128.
    ///
    /// # Safety
    /// The machine must have its instructions.
    unsafe fn large(unsigned: Numbers, signed: Numbers) -> __m128i;
}

/// By AVX2.
pub(super) struct Avx2;

/// By AVX-512 VNNI, in vectors of 128 bits.
pub(super) struct Avx512Vnni;

/// By AVX-VNNI.
pub(super) struct AvxVnni;

impl DotProduct for Avx2 {
    #[inline(always)]
    unsafe fn small(unsigned: Numbers, signed: Numbers) -> __m128i {
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
    unsafe fn large(unsigned: Numbers, signed: Numbers) -> __m128i {
        unsafe {
            let first = _mm_dpbusd_epi32(_mm_setzero_si128(), unsigned[0], signed[0]);
            _mm_dpbusd_epi32(first, unsigned[1], signed[1])
        }
    }
}

impl DotProduct for AvxVnni {
    #[inline(always)]
    unsafe fn large(unsigned: Numbers, signed: Numbers) -> __m128i {
        unsafe {
            let first = _mm_dpbusd_avx_epi32(_mm_setzero_si128(), unsigned[0], signed[0]);
            _mm_dpbusd_avx_epi32(first, unsigned[1], signed[1])
        }
    }
}

/// 16 bytes.
#[inline(always)]
pub(super) unsafe fn bytes<T>(at: *const T) -> __m128i {
    unsafe { _mm_loadu_si128(at.cast()) }
}

/// The low four bits of each byte.
#[inline(always)]
pub(super) unsafe fn low_bits(bytes: __m128i) -> __m128i {
    unsafe { _mm_and_si128(bytes, _mm_set1_epi8(0xf)) }
}

/// The high four bits of each byte.
#[inline(always)]
pub(super) unsafe fn high_bits(bytes: __m128i) -> __m128i {
    unsafe { low_bits(_mm_srli_epi16::<4>(bytes)) }
}
