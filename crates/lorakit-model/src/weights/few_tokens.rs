//! Products of few tokens with rows of a matrix, as in decoding: bound by the memory that the weights are read
//! from.
//!
//! Each row is read once, in order, and multiplied with all tokens before the next one. A sum has a fixed number of lanes
//! whatever vectors a machine has and however many tokens there are, and products are not fused with sums: the values are
//! the same on every machine, and a token's do not depend on the tokens beside it.

use crate::weights::half_precision::bf16_as_f32;
use crate::weights::prefetch::prefetch;
use half::{bf16, f16};
use lorakit_lora::kernels::simd::{Simd, SimdLevel, WithSimd};
use lorakit_lora::kernels::vector_product::lane_sum;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// The most tokens for which these products are faster than matrix products of whole tiles.
pub(super) const FEW: usize = 8;

/// Tokens that share the loads of a row.
const BLOCK: usize = 4;

/// Partial sums of one token: of a block's tokens, as many as the registers of AVX2 hold.
const LANES: usize = 16;

/// A type that values are stored in.
pub(super) trait StoredValue: Copy {
    /// The value as f32.
    fn widen(self) -> f32;

    /// 16 values as f32.
    ///
    /// # Safety
    /// There must be 16, and the machine must have AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn widen_vectors(values: *const Self) -> [__m256; 2];
}

impl StoredValue for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn widen_vectors(values: *const Self) -> [__m256; 2] {
        // SAFETY: as the caller promises; so in all of this file.
        unsafe { [_mm256_loadu_ps(values), _mm256_loadu_ps(values.add(8))] }
    }
}

impl StoredValue for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        bf16_as_f32(self)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn widen_vectors(values: *const Self) -> [__m256; 2] {
        unsafe {
            let [a, b] = eights(values);
            let upper = |bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits));
            [upper(_mm256_cvtepu16_epi32(a)), upper(_mm256_cvtepu16_epi32(b))]
        }
    }
}

impl StoredValue for f16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn widen_vectors(values: *const Self) -> [__m256; 2] {
        unsafe {
            let [a, b] = eights(values);
            [_mm256_cvtph_ps(a), _mm256_cvtph_ps(b)]
        }
    }
}

/// Twice eight values of 16 bits.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn eights<T>(values: *const T) -> [__m128i; 2] {
    unsafe { [_mm_loadu_si128(values.cast()), _mm_loadu_si128(values.add(8).cast())] }
}

/// `y[r][t] = <w[r], x[t]>`, with `y` `[rows, tokens]`, of rows whose values are widened as they are read.
pub(super) struct RowProducts<'a, T> {
    /// The rows, `[rows, columns]`.
    pub(super) rows: &'a [T],
    /// Values of a row.
    pub(super) columns: usize,
    /// The tokens, `[tokens, columns]`.
    pub(super) x: &'a [f32],
    /// The products, `[rows, tokens]`.
    pub(super) y: &'a mut [f32],
}

impl<T: StoredValue> RowProducts<'_, T> {
    /// Makes the products.
    pub(super) fn run(self) {
        self.run_at(SimdLevel::current());
    }

    /// The same by the vectors of a level. Those of AVX2 are all that memory can keep busy.
    fn run_at(self, level: SimdLevel) {
        #[cfg(target_arch = "x86_64")]
        if level >= SimdLevel::Avx2 && is_x86_feature_detected!("f16c") {
            // SAFETY: the machine has the instructions.
            return unsafe { multiply_avx2(self) };
        }
        level.dispatch(PlainProducts(self));
    }

    /// Makes the products, those of some tokens with a row by `products`.
    #[inline(always)]
    fn each(self, products: impl Fn(&[T], &[f32], &mut [f32])) {
        let Self { rows, columns, x, y } = self;
        for (row, y) in rows.chunks_exact(columns).zip(y.chunks_exact_mut(x.len() / columns)) {
            for (x, y) in x.chunks(BLOCK * columns).zip(y.chunks_mut(BLOCK)) {
                products(row, x, y);
            }
        }
    }
}

/// The products by AVX2, whose instructions the loops around them are compiled for.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_avx2<T: StoredValue>(all: RowProducts<T>) {
    all.each(
        #[inline(always)]
        |row, x, y| unsafe {
            match y {
                [a, b, c, d] => [*a, *b, *c, *d] = products_avx2(row, x),
                [a, b, c] => [*a, *b, *c] = products_avx2(row, x),
                [a, b] => [*a, *b] = products_avx2(row, x),
                [a] => [*a] = products_avx2(row, x),
                _ => {}
            }
        },
    );
}

/// The products of one row with `TOKENS` tokens.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn products_avx2<const TOKENS: usize, T: StoredValue>(row: &[T], x: &[f32]) -> [f32; TOKENS] {
    let (columns, whole) = (row.len(), row.len() / LANES * LANES);
    let mut totals = [0.0; TOKENS];
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; TOKENS];
        for at in (0..whole).step_by(LANES) {
            let w = row.as_ptr().add(at);
            prefetch(w);
            let w = T::widen_vectors(w);
            for (t, sums) in sums.iter_mut().enumerate() {
                let x = x.as_ptr().add(t * columns + at);
                sums[0] = _mm256_add_ps(sums[0], _mm256_mul_ps(_mm256_loadu_ps(x), w[0]));
                sums[1] = _mm256_add_ps(sums[1], _mm256_mul_ps(_mm256_loadu_ps(x.add(8)), w[1]));
            }
        }
        // In the order of `lane_sum`.
        for (total, [a, b]) in totals.iter_mut().zip(sums) {
            let eight = _mm256_add_ps(a, b);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            *total = _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
        }
    }
    for (t, total) in totals.iter_mut().enumerate() {
        *total += rest(&row[whole..], &x[t * columns + whole..][..columns - whole]);
    }
    totals
}

/// The products by plain loops, for every machine.
struct PlainProducts<'a, T>(RowProducts<'a, T>);

impl<T: StoredValue> WithSimd for PlainProducts<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.0.each(
            #[inline(always)]
            |row, x, y| x.chunks_exact(row.len()).zip(y).for_each(|(x, y)| *y = plain_product(row, x)),
        );
    }
}

/// The product of one row with one token.
#[inline(always)]
fn plain_product<T: StoredValue>(row: &[T], x: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((w, w_rest), (x, x_rest)) = (row.as_chunks::<LANES>(), x.as_chunks::<LANES>());
    for (w, x) in w.iter().zip(x) {
        prefetch(w.as_ptr());
        for lane in 0..LANES {
            sums[lane] += x[lane] * w[lane].widen();
        }
    }
    lane_sum(sums) + rest(w_rest, x_rest)
}

/// The sum of the products past the last whole lanes.
#[inline(always)]
fn rest<T: StoredValue>(w: &[T], x: &[f32]) -> f32 {
    w.iter().zip(x).map(|(w, x)| w.widen() * x).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn integers(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    /// Small integers, whose sums are exact in any order; rows that no number of lanes divides, blocks that are not full,
    /// and every level of vectors that the machine has.
    #[test]
    fn products_of_any_number_of_tokens_match_the_definition() {
        for (columns, tokens) in [1, 31, 32, 33, 100, 576].into_iter().flat_map(|c| (1..=FEW + 1).map(move |t| (c, t)))
        {
            let (w, x) = (integers(5 * columns, 7), integers(tokens * columns, 5));
            let narrow: Vec<bf16> = w.iter().copied().map(bf16::from_f32).collect();
            let half: Vec<f16> = w.iter().copied().map(f16::from_f32).collect();
            let (rows, x) = (&w[..], &x[..]);
            for level in SimdLevel::available() {
                let mut all = [vec![9.0; 5 * tokens], vec![9.0; 5 * tokens], vec![9.0; 5 * tokens]];
                let [of_f32, of_bf16, of_f16] = &mut all;
                RowProducts { rows, columns, x, y: of_f32 }.run_at(level);
                RowProducts { rows: &narrow[..], columns, x, y: of_bf16 }.run_at(level);
                RowProducts { rows: &half[..], columns, x, y: of_f16 }.run_at(level);
                for (i, products) in (0..5 * tokens).map(|i| (i, [0, 1, 2].map(|form| all[form][i]))) {
                    let (w, x) = (&w[i / tokens * columns..][..columns], &x[i % tokens * columns..][..columns]);
                    let expected = w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
                    assert_eq!(products, [expected; 3], "{level:?} {columns} {tokens} {i}");
                }
            }
        }
    }

    /// Values whose sums depend on their order, and a token of NaN beside them.
    #[test]
    fn the_products_of_a_token_do_not_depend_on_the_others() {
        const COLUMNS: usize = 100;
        let values = |count: usize, step: f32| -> Vec<f32> { (0..count).map(|i| (i as f32 * step).sin()).collect() };
        let (w, x) = (values(5 * COLUMNS, 0.7), values(FEW * COLUMNS, 0.3));
        let rows = &w[..];
        let products = |level: SimdLevel, x: &[f32]| {
            let mut y = vec![9.0; 5 * x.len() / COLUMNS];
            RowProducts { rows, columns: COLUMNS, x, y: &mut y }.run_at(level);
            y
        };
        for level in SimdLevel::available() {
            for tokens in 1..=FEW {
                let mut x = x[..tokens * COLUMNS].to_vec();
                x[(tokens / 2) * COLUMNS..][..COLUMNS].fill(f32::NAN);
                let together = products(level, &x);
                for (token, x) in x.chunks_exact(COLUMNS).enumerate() {
                    let own: Vec<u32> = together.iter().skip(token).step_by(tokens).map(|y| y.to_bits()).collect();
                    let alone: Vec<u32> = products(level, x).into_iter().map(f32::to_bits).collect();
                    assert!(own == alone || token == tokens / 2, "{level:?}, {tokens} tokens, token {token}");
                }
            }
        }
    }

    /// Values whose sums depend on their order, at every level of vectors and in every type.
    #[test]
    fn products_are_the_same_bits_at_every_level_and_of_every_type() {
        const COLUMNS: usize = 100;
        let halves = |i: usize| f16::from_f32((i as f32 * 0.7).sin());
        let (narrow, x): (Vec<f16>, Vec<f32>) = (0..5 * COLUMNS).map(|i| (halves(i), (i as f32 * 0.3).sin())).unzip();
        let wide: Vec<f32> = narrow.iter().map(|value| value.to_f32()).collect();
        let mut of_levels: Vec<Vec<f32>> = Vec::new();
        for level in SimdLevel::available() {
            let (mut of_f32, mut of_f16) = (vec![9.0; 25], vec![9.0; 25]);
            RowProducts { rows: &wide[..], columns: COLUMNS, x: &x, y: &mut of_f32 }.run_at(level);
            RowProducts { rows: &narrow[..], columns: COLUMNS, x: &x, y: &mut of_f16 }.run_at(level);
            of_levels.extend([of_f32, of_f16]);
        }
        assert!(of_levels.iter().all(|products| *products == of_levels[0]));
    }
}
