//! Conversions between f32 and the 16-bit types that weights are stored in.

use crate::weights::storage_dtype::StorageDtype;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};

/// The values as f32: a bf16 is the upper half of an f32.
pub(super) fn widen_bf16(values: &[bf16], wide: &mut [f32]) {
    simd::dispatch(WidenBf16 { values, wide });
}

struct WidenBf16<'a> {
    values: &'a [bf16],
    wide: &'a mut [f32],
}

impl WithSimd for WidenBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.wide.iter_mut().zip(self.values).for_each(|(w, v)| *w = bf16_as_f32(*v));
    }
}

/// One value as f32.
#[inline(always)]
pub(super) fn bf16_as_f32(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// The values as f32.
pub(super) fn widen_f16(values: &[f16], wide: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("f16c") {
        // SAFETY: the machine has the instructions.
        return unsafe { widen_f16c(values, wide) };
    }
    values.convert_to_f32_slice(wide);
}

/// The same by the machine's instructions. `half` has them too, but calls a function for every eight values.
///
/// # Safety
/// The machine must have F16C.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
unsafe fn widen_f16c(values: &[f16], wide: &mut [f32]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    let (mut values, mut wide) = (values.chunks_exact(8), wide.chunks_exact_mut(8));
    for (v, w) in (&mut values).zip(&mut wide) {
        // SAFETY: both have eight values, and neither instruction needs alignment.
        unsafe { _mm256_storeu_ps(w.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(v.as_ptr().cast::<__m128i>()))) };
    }
    let rest = values.remainder();
    wide.into_remainder().iter_mut().zip(rest).for_each(|(w, v)| *w = v.to_f32());
}

/// Writes the bits of the values rounded to bf16, to the nearest or else even.
pub(super) fn round_to_bf16(values: &[f32], bits: &mut [u16]) {
    simd::dispatch(RoundToBf16 { values, bits });
}

struct RoundToBf16<'a> {
    values: &'a [f32],
    bits: &'a mut [u16],
}

impl WithSimd for RoundToBf16<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (rounded, value) in self.bits.iter_mut().zip(self.values) {
            *rounded = bf16_bits(*value);
        }
    }
}

/// The bits of a value rounded to bf16: plain operations, which the compiler turns into vectors.
#[inline(always)]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // A NaN stays one, and becomes a quiet one.
    (if value.is_nan() { bits >> 16 | 0x40 } else { nearest }) as u16
}

/// A few values in the precision of `dtype`, to the nearest or else even.
pub(super) fn rounded<const COUNT: usize>(values: [f32; COUNT], dtype: StorageDtype) -> [f32; COUNT] {
    match dtype {
        StorageDtype::F32 => values,
        StorageDtype::BF16 => values.map(|value| bf16_as_f32(bf16::from_bits(bf16_bits(value)))),
        StorageDtype::F16 => {
            let (mut half, mut wide) = ([f16::ZERO; COUNT], [0.0; COUNT]);
            half.convert_from_f32_slice(&values);
            widen_f16(&half, &mut wide);
            wide
        }
    }
}

/// Writes the bits of the values rounded to f16, to the nearest or else even.
pub(super) fn round_to_f16(values: &[f32], bits: &mut [u16]) {
    bits.reinterpret_cast_mut::<f16>().convert_from_f32_slice(values);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Halves between two neighbors, and what is next to them.
    #[test]
    fn values_between_two_of_bf16_are_rounded_as_by_half() {
        let starts = (0..=u16::MAX).step_by(7).map(|upper| u32::from(upper) << 16);
        let near = |start: u32| [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|lower| f32::from_bits(start | lower));
        let values: Vec<f32> = starts.flat_map(near).collect();
        let expected: Vec<u16> = values.iter().map(|value| bf16::from_f32(*value).to_bits()).collect();
        let mut rounded = vec![0; values.len()];
        round_to_bf16(&values, &mut rounded);
        assert_eq!(rounded, expected);
    }

    /// Every bit pattern of 16 bits, NaN among them, at a length that no vector divides.
    #[test]
    fn every_value_of_16_bits_is_widened_and_rounded_back() {
        let patterns: Vec<u16> = (0..=u16::MAX).chain(0..3).collect();
        let (mut wide, mut rounded) = (vec![0.0; patterns.len()], vec![0; patterns.len()]);
        let values: Vec<f16> = patterns.iter().map(|&bits| f16::from_bits(bits)).collect();
        widen_f16(&values, &mut wide);
        assert!(values.iter().zip(&wide).all(|(v, w)| v.to_f32() == *w || v.is_nan() && w.is_nan()));
        round_to_f16(&wide, &mut rounded);
        let same = |(v, &r): (&f16, &u16)| v.to_bits() == r || v.is_nan() && f16::from_bits(r).is_nan();
        assert!(values.iter().zip(&rounded).all(same));
        let values: Vec<bf16> = patterns.iter().map(|&bits| bf16::from_bits(bits)).collect();
        widen_bf16(&values, &mut wide);
        assert!(values.iter().zip(&wide).all(|(v, w)| v.to_f32() == *w || v.is_nan() && w.is_nan()));
        round_to_bf16(&wide, &mut rounded);
        let same = |(v, &r): (&bf16, &u16)| v.to_bits() == r || v.is_nan() && bf16::from_bits(r).is_nan();
        assert!(values.iter().zip(&rounded).all(same));
    }
}
