//! Transposes of vectors: rows of a head become lanes, lanes rows, and a square of lanes its transpose.
//!
//! Vectors of a generic width have no such operation, and value by value it would take longer than what a head's products
//! take. Where the vectors are those of AVX2 or AVX-512, it is done by their shuffles.

use lorakit_lora::kernels::simd::Simd;
use pulp::bytemuck::{cast_slice, cast_slice_mut};
#[cfg(target_arch = "x86_64")]
use std::any::TypeId;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Features that are transposed at a time; the width of a head is a multiple.
pub(crate) const FEATURES: usize = 8;

/// The features of one row of a head, in groups.
pub(crate) type HeadRow<const GROUPS: usize> = [[f32; FEATURES]; GROUPS];

/// As many rows as a vector has lanes, one vector for each feature.
pub(crate) type Lanes<S, const GROUPS: usize> = [[<S as Simd>::f32s; FEATURES]; GROUPS];

/// As many rows as there are lanes, as lanes.
#[inline(always)]
pub(crate) fn rows_to_lanes<S: Simd, const GROUPS: usize>(
    _: S,
    rows: &[HeadRow<GROUPS>],
    lanes: &mut Lanes<S, GROUPS>,
) {
    assert_eq!(rows.len(), S::F32_LANES, "a row for each lane");
    for (group, lanes) in lanes.iter_mut().enumerate() {
        #[cfg(target_arch = "x86_64")]
        {
            let to = lanes.as_mut_ptr().cast::<f32>();
            if is::<S, pulp::x86::V4>() {
                // SAFETY: the machine has these vectors; there are 16 rows of 8 values, and 8 vectors of 16 lanes.
                unsafe { rows_to_lanes_avx512(std::array::from_fn(|row| rows[row][group].as_ptr()), to) };
                continue;
            }
            if is::<S, pulp::x86::V3>() {
                // SAFETY: as above, with 8 rows and 8 lanes.
                unsafe {
                    let rows = std::array::from_fn(|row| rows[row][group].as_ptr());
                    transpose_avx(rows, std::array::from_fn(|feature| to.add(8 * feature)));
                };
                continue;
            }
        }
        let to: &mut [f32] = cast_slice_mut(lanes);
        for (lane, row) in rows.iter().enumerate() {
            (0..FEATURES).for_each(|feature| to[feature * S::F32_LANES + lane] = row[group][feature]);
        }
    }
}

/// The reverse of [`rows_to_lanes`].
#[inline(always)]
pub(crate) fn lanes_to_rows<S: Simd, const GROUPS: usize>(
    _: S,
    lanes: &Lanes<S, GROUPS>,
    rows: &mut [HeadRow<GROUPS>],
) {
    assert_eq!(rows.len(), S::F32_LANES, "a row for each lane");
    for (group, lanes) in lanes.iter().enumerate() {
        #[cfg(target_arch = "x86_64")]
        {
            let from = lanes.as_ptr().cast::<f32>();
            if is::<S, pulp::x86::V4>() {
                // SAFETY: as in `rows_to_lanes`.
                unsafe { lanes_to_rows_avx512(from, std::array::from_fn(|row| rows[row][group].as_mut_ptr())) };
                continue;
            }
            if is::<S, pulp::x86::V3>() {
                // SAFETY: as in `rows_to_lanes`.
                unsafe {
                    let rows = std::array::from_fn(|row| rows[row][group].as_mut_ptr());
                    transpose_avx(std::array::from_fn(|feature| from.add(8 * feature)), rows);
                };
                continue;
            }
        }
        let from: &[f32] = cast_slice(lanes);
        for (lane, row) in rows.iter_mut().enumerate() {
            (0..FEATURES).for_each(|feature| row[group][feature] = from[feature * S::F32_LANES + lane]);
        }
    }
}

/// Transposes as many vectors as there are lanes.
#[inline(always)]
pub(crate) fn transpose_square<S: Simd>(_: S, square: &mut [S::f32s]) {
    assert_eq!(square.len(), S::F32_LANES, "a vector for each lane");
    #[cfg(target_arch = "x86_64")]
    {
        let at = square.as_mut_ptr().cast::<f32>();
        if is::<S, pulp::x86::V4>() {
            // SAFETY: the machine has these vectors, and there are 16 of them.
            return unsafe { transpose_avx512(at) };
        }
        if is::<S, pulp::x86::V3>() {
            // SAFETY: the machine has these vectors, and there are 8 of them. All are read before one is written.
            return unsafe {
                transpose_avx(
                    std::array::from_fn(|i| at.add(8 * i).cast_const()),
                    std::array::from_fn(|i| at.add(8 * i)),
                )
            };
        }
    }
    let values: &mut [f32] = cast_slice_mut(square);
    for row in 0..S::F32_LANES {
        (0..row).for_each(|column| values.swap(row * S::F32_LANES + column, column * S::F32_LANES + row));
    }
}

/// Whether the vectors of `S` are those of `V`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn is<S: 'static, V: 'static>() -> bool {
    TypeId::of::<S>() == TypeId::of::<V>()
}

/// The transpose of 8 x 8 values, all of which are read before one is written.
///
/// # Safety
/// The machine must have AVX, and each of the 8 places must hold 8 values.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx")]
unsafe fn transpose_avx(from: [*const f32; 8], to: [*mut f32; 8]) {
    // SAFETY: as the caller promises.
    unsafe {
        let [mut rows, mut pairs, mut fours] = [[_mm256_setzero_ps(); 8]; 3];
        for i in 0..8 {
            rows[i] = _mm256_loadu_ps(from[i]);
        }
        // Within halves of vectors: first of two rows each, then of four.
        for i in 0..4 {
            pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
        }
        for i in [0, 4] {
            for j in 0..2 {
                fours[i + 2 * j] = _mm256_shuffle_ps::<0x44>(pairs[i + j], pairs[i + 2 + j]);
                fours[i + 2 * j + 1] = _mm256_shuffle_ps::<0xee>(pairs[i + j], pairs[i + 2 + j]);
            }
        }
        for i in 0..4 {
            _mm256_storeu_ps(to[i], _mm256_permute2f128_ps::<0x20>(fours[i], fours[4 + i]));
            _mm256_storeu_ps(to[4 + i], _mm256_permute2f128_ps::<0x31>(fours[i], fours[4 + i]));
        }
    }
}

/// Four vectors transposed within each of their four quarters.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_quarters([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    let [ab, cd] = [_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d)];
    let [ab_high, cd_high] = [_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d)];
    [
        _mm512_shuffle_ps::<0x44>(ab, cd),
        _mm512_shuffle_ps::<0xee>(ab, cd),
        _mm512_shuffle_ps::<0x44>(ab_high, cd_high),
        _mm512_shuffle_ps::<0xee>(ab_high, cd_high),
    ]
}

/// 16 rows of 8 values as 8 vectors.
///
/// # Safety
/// The machine must have AVX-512, and the places must hold so many values.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn rows_to_lanes_avx512(rows: [*const f32; 16], to: *mut f32) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut eights = [[_mm512_setzero_ps(); 4]; 2];
        for (half, eight) in eights.iter_mut().enumerate() {
            for i in 0..4 {
                let [low, high] = [_mm256_loadu_ps(rows[8 * half + i]), _mm256_loadu_ps(rows[8 * half + 4 + i])];
                eight[i] = _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high);
            }
            // Quarters hold a feature of four rows: of the first and the last four features, of either four rows.
            *eight = transpose_quarters(*eight);
        }
        let [first, rest] = eights;
        for (i, (first, rest)) in first.into_iter().zip(rest).enumerate() {
            _mm512_storeu_ps(to.add(16 * i), _mm512_shuffle_f32x4::<0x88>(first, rest));
            _mm512_storeu_ps(to.add(16 * (4 + i)), _mm512_shuffle_f32x4::<0xdd>(first, rest));
        }
    }
}

/// 8 vectors as 16 rows of 8 values.
///
/// # Safety
/// As [`rows_to_lanes_avx512`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn lanes_to_rows_avx512(from: *const f32, rows: [*mut f32; 16]) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut fours = [[_mm512_setzero_ps(); 4]; 2];
        for (half, four) in fours.iter_mut().enumerate() {
            for (i, lanes) in four.iter_mut().enumerate() {
                *lanes = _mm512_loadu_ps(from.add(16 * (4 * half + i)));
            }
            // Quarter `j` of vector `i` holds four features of row `4 j + i`.
            *four = transpose_quarters(*four);
        }
        let [low, high] = [_mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15)];
        for i in 0..4 {
            let [a, b] = [_mm512_castps_pd(fours[0][i]), _mm512_castps_pd(fours[1][i])];
            let [two, others] = [_mm512_permutex2var_pd(a, low, b), _mm512_permutex2var_pd(a, high, b)];
            for (half, two) in [_mm512_castpd_ps(two), _mm512_castpd_ps(others)].into_iter().enumerate() {
                _mm256_storeu_ps(rows[8 * half + i], _mm512_castps512_ps256(two));
                _mm256_storeu_ps(rows[8 * half + 4 + i], _mm512_extractf32x8_ps::<1>(two));
            }
        }
    }
}

/// The transpose of 16 vectors in place.
///
/// # Safety
/// The machine must have AVX-512, and there must be 256 values.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn transpose_avx512(at: *mut f32) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut fours = [[_mm512_setzero_ps(); 4]; 4];
        for (number, four) in fours.iter_mut().enumerate() {
            for (i, lanes) in four.iter_mut().enumerate() {
                *lanes = _mm512_loadu_ps(at.add(16 * (4 * number + i)));
            }
            *four = transpose_quarters(*four);
        }
        let [a, b, c, d] = fours;
        // Quarter `j` of vector `i` is of row `4 j + i`: those of four vectors become one.
        for i in 0..4 {
            let even = [_mm512_shuffle_f32x4::<0x88>(a[i], b[i]), _mm512_shuffle_f32x4::<0x88>(c[i], d[i])];
            let odd = [_mm512_shuffle_f32x4::<0xdd>(a[i], b[i]), _mm512_shuffle_f32x4::<0xdd>(c[i], d[i])];
            for (j, [ab, cd]) in [even, odd].into_iter().enumerate() {
                _mm512_storeu_ps(at.add(16 * (4 * j + i)), _mm512_shuffle_f32x4::<0x88>(ab, cd));
                _mm512_storeu_ps(at.add(16 * (8 + 4 * j + i)), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorakit_lora::kernels::simd::{SimdLevel, WithSimd};

    /// Rows that became lanes, the rows that those became again, and the transpose of a square.
    struct Transposes;

    impl WithSimd for Transposes {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            let row = |row: usize| -> HeadRow<2> {
                std::array::from_fn(|group| {
                    std::array::from_fn(|feature| (row * 2 * FEATURES + group * FEATURES + feature) as f32)
                })
            };
            let rows: Vec<HeadRow<2>> = (0..S::F32_LANES).map(row).collect();
            let mut lanes: Lanes<S, 2> = [[simd.splat_f32s(-1.0); FEATURES]; 2];
            rows_to_lanes(simd, &rows, &mut lanes);
            let values: &[f32] = cast_slice(lanes.as_flattened());
            for (at, &value) in values.iter().enumerate() {
                let (feature, lane) = (at / S::F32_LANES, at % S::F32_LANES);
                assert_eq!(value, rows[lane].as_flattened()[feature], "{simd:?}, feature {feature}, lane {lane}");
            }
            let mut back = vec![[[-1.0; FEATURES]; 2]; S::F32_LANES];
            lanes_to_rows(simd, &lanes, &mut back);
            assert_eq!(back, rows);
            let mut square = vec![simd.splat_f32s(0.0); S::F32_LANES];
            let values: &mut [f32] = cast_slice_mut(&mut square);
            values.iter_mut().enumerate().for_each(|(at, value)| *value = at as f32);
            transpose_square(simd, &mut square);
            let values: &[f32] = cast_slice(&square);
            let expected = |at: usize| (at % S::F32_LANES * S::F32_LANES + at / S::F32_LANES) as f32;
            assert!((0..values.len()).all(|at| values[at] == expected(at)), "{simd:?}");
        }
    }

    #[test]
    fn rows_lanes_and_squares_are_transposed_at_every_level_and_without_shuffles() {
        SimdLevel::available().for_each(|level| level.dispatch(Transposes));
        Transposes.with_simd(pulp::Scalar128b);
        Transposes.with_simd(pulp::Scalar256b);
        Transposes.with_simd(pulp::Scalar512b);
    }
}
