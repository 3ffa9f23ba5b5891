//! The exponential, and reductions, as loops that the compiler turns into vector code; a call of the system's exponential is
//! not. To be called within [`lorakit_lora::kernels::simd::dispatch`].

use lorakit_lora::kernels::simd::Simd;

/// Beyond these the result would leave the range of f32, and `exp` returns its value at them.
const LOWEST: f32 = -87.3;
const HIGHEST: f32 = 88.7;

/// 1.5 * 2^23: a float of that size has no fraction bits, so that adding it rounds to an integer, in the low bits.
const ROUND: f32 = 12_582_912.0;

/// ln 2 in two parts: whole multiples of the first are exact.
const LN2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// The polynomial of the remainder, highest power first (S. Moshier, Cephes Mathematical Library, `expf`).
const POLYNOMIAL: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `e^x` within three units in the last place: `2^n e^r`, with `n` the nearest integer to `x / ln 2`.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(LOWEST, HIGHEST);
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2[0] - n * LN2[1];
    let polynomial = POLYNOMIAL.iter().fold(0.0, |sum, c| sum * r + c);
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    (polynomial * r * r + r + 1.0) * power
}

/// [`exp`] of every lane, none of which is positive. It may be NaN.
#[inline(always)]
pub(crate) fn exp_of_negative<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let splat = |value: f32| simd.splat_f32s(value);
    // By comparison, which keeps NaN; a maximum drops it on some machines.
    let x = simd.select_f32s(simd.less_than_f32s(x, splat(LOWEST)), splat(LOWEST), x);
    let rounded = simd.mul_add_e_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(rounded, splat(ROUND));
    let r = simd.negate_mul_add_e_f32s(n, splat(LN2[0]), x);
    let r = simd.negate_mul_add_e_f32s(n, splat(LN2[1]), r);
    let mut polynomial = splat(POLYNOMIAL[0]);
    for &coefficient in &POLYNOMIAL[1..] {
        polynomial = simd.mul_add_e_f32s(polynomial, r, splat(coefficient));
    }
    let shifted = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(rounded), simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(simd.add_u32s(shifted, simd.splat_u32s(127 << 23)));
    let rest = simd.mul_add_e_f32s(simd.mul_f32s(r, r), polynomial, simd.add_f32s(r, splat(1.0)));
    simd.mul_f32s(rest, power)
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    2.0 * sigmoid(2.0 * x) - 1.0
}

/// Partial sums or maxima: whole vectors, combined in the same order on every machine.
const LANES: usize = 8;

/// The largest value; minus infinity if there is none.
#[inline(always)]
pub(crate) fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, &v)| *l = larger(*l, v));
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, &b| larger(a, b))
}

/// The sum of all values, in f64.
#[inline(always)]
pub(crate) fn total(values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f64; LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(l, &v)| *l += f64::from(v));
    }
    lanes.iter().sum::<f64>() + rest.iter().map(|&v| f64::from(v)).sum::<f64>()
}

/// The inner product of two rows of equal length.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut lanes = [0f32; LANES];
    for (x, y) in x.iter().zip(y) {
        (0..LANES).for_each(|i| lanes[i] += x[i] * y[i]);
    }
    lanes.iter().sum::<f32>() + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use lorakit_lora::kernels::simd::{SimdLevel, WithSimd};
    use pulp::bytemuck::cast_slice;

    struct OfNegative(f32);

    impl WithSimd for OfNegative {
        type Output = Vec<f32>;

        fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
            cast_slice(&[exp_of_negative(simd, simd.splat_f32s(self.0))]).to_vec()
        }
    }

    #[test]
    fn the_exponential_of_lanes_agrees_with_that_of_values() {
        for level in SimdLevel::available() {
            for i in (-100_000..=0).step_by(37) {
                let x = i as f32 / 1000.0;
                for value in level.dispatch(OfNegative(x)) {
                    // Lanes round less: they multiply and add at once.
                    assert!((value / exp(x) - 1.0).abs() < 4.0 * f32::EPSILON, "{level:?}: exp({x}) = {value}");
                }
            }
            assert!(level.dispatch(OfNegative(f32::NAN)).iter().all(|value| value.is_nan()));
            assert!(level.dispatch(OfNegative(f32::NEG_INFINITY)).iter().all(|value| (0.0..1e-37).contains(value)));
        }
    }

    #[test]
    fn exp_agrees_with_std_over_its_whole_range() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0 + 0.000_37;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 3.0 * f64::from(f32::EPSILON), "exp({x}) = {ours}, not {exact}");
        }
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn exp_beyond_its_range_is_tiny_huge_or_nan() {
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(-1000.0) > 0.0);
        assert!(exp(f32::INFINITY) > 1e38);
        assert!(exp(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!((sigmoid(100.0), sigmoid(0.0)), (1.0, 0.5));
        assert!(sigmoid(-100.0) < 1e-37);
    }

    #[test]
    fn sums_and_maxima_include_the_values_beyond_the_last_whole_vector() {
        let values: Vec<f32> = (0..19).map(|i| i as f32 - 30.0).collect();
        assert_eq!((largest(&values), total(&values)), (-12.0, -399.0));
        assert_eq!((largest(&[]), total(&[])), (f32::NEG_INFINITY, 0.0));
    }
}
