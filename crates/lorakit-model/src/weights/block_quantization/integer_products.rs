//! Products of few tokens of 8 bits with rows of blocks, as in decoding.

use super::block_type::BlockType;
use super::eight_bit_tokens::{EightBitToken, EightBitTokens, GROUP};
use super::unpacked_block::UnpackedBlock;
#[cfg(target_arch = "x86_64")]
use super::x86_rows::{QuantizedRows, X86Instructions};
use super::{blocks_of_32, blocks_of_256};
use lorakit_lora::kernels::simd::{Simd, SimdLevel, WithSimd};

impl BlockType {
    /// Whether there are integer products of this type; the other types' values are dequantized row by row.
    pub(crate) fn has_integer_products(self) -> bool {
        !matches!(self, Self::Q2K | Self::Q3K)
    }

    /// `y[r][t] = <row r, token t>`, `[rows, tokens]`, of rows of whole blocks: sums of products of whole numbers, each 32 of
    /// which are multiplied with their scales.
    pub(crate) fn integer_products(self, blocks: &[u8], tokens: &EightBitTokens, y: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if let Some(instructions) = x86_instructions(SimdLevel::current()) {
            return instructions.multiply(QuantizedRows { block_type: self, blocks, tokens }, y);
        }
        SimdLevel::current().dispatch(PlainRows { block_type: self, blocks, tokens, y });
    }
}

/// The best instructions of a level; AVX-VNNI is as wide as AVX2.
#[cfg(target_arch = "x86_64")]
fn x86_instructions(level: SimdLevel) -> Option<X86Instructions> {
    match level {
        SimdLevel::Scalar => None,
        SimdLevel::Avx2 => {
            X86Instructions::available().find(|&instructions| instructions != X86Instructions::Avx512Vnni)
        }
        SimdLevel::Avx512 => X86Instructions::available().next(),
    }
}

/// The same products by plain loops, for every machine.
struct PlainRows<'a> {
    block_type: BlockType,
    blocks: &'a [u8],
    tokens: &'a EightBitTokens,
    y: &'a mut [f32],
}

impl WithSimd for PlainRows<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        match self.block_type {
            BlockType::Q4_0 => self.multiply(blocks_of_32::q4_0),
            BlockType::Q4_1 => self.multiply(blocks_of_32::q4_1),
            BlockType::Q5_0 => self.multiply(blocks_of_32::q5_0),
            BlockType::Q5_1 => self.multiply(blocks_of_32::q5_1),
            BlockType::Q8_0 => self.multiply(blocks_of_32::q8_0),
            BlockType::Iq4Nl => self.multiply(blocks_of_32::iq4_nl),
            BlockType::Q2K => self.multiply(blocks_of_256::q2_k),
            BlockType::Q3K => self.multiply(blocks_of_256::q3_k),
            BlockType::Q4K => self.multiply(blocks_of_256::q4_k),
            BlockType::Q5K => self.multiply(blocks_of_256::q5_k),
            BlockType::Q6K => self.multiply(blocks_of_256::q6_k),
        }
    }
}

impl PlainRows<'_> {
    #[inline(always)]
    fn multiply<const BYTES: usize, const GROUPS: usize, const SIZE: usize>(
        self,
        unpack: impl Fn(&[u8; BYTES]) -> UnpackedBlock<GROUPS, SIZE>,
    ) {
        let Self { blocks, tokens, y, .. } = self;
        let (in_row, count) = (tokens.columns() / (GROUPS * SIZE), tokens.len());
        for (row, y) in blocks.as_chunks::<BYTES>().0.chunks_exact(in_row).zip(y.chunks_exact_mut(count)) {
            y.fill(0.0);
            for (b, block) in row.iter().enumerate() {
                let block = unpack(block);
                for (t, y) in y.iter_mut().enumerate() {
                    *y += block.product(tokens.token(t), b * GROUPS);
                }
            }
        }
    }
}

impl<const GROUPS: usize, const SIZE: usize> UnpackedBlock<GROUPS, SIZE> {
    /// The product with the token's groups from `first` on.
    #[inline(always)]
    fn product(&self, token: EightBitToken, first: usize) -> f32 {
        let sums = if SIZE == GROUP { token.sums } else { token.half_sums };
        let mut total = 0.0;
        for g in 0..GROUPS {
            let quants = &token.quants[(first + g) * SIZE..][..SIZE];
            let whole: i32 = self.quants[g].iter().zip(quants).map(|(w, x)| i32::from(*w) * i32::from(*x)).sum();
            let scale = self.factors[g] * token.scales[(first + g) * SIZE / GROUP];
            total += scale * whole as f32 - self.minima[g] * sums[first + g];
        }
        total
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::block_type::tests::random_blocks;
    use super::*;

    /// Tokens of random values of very different sizes.
    fn random_tokens(count: usize, seed: u64) -> Vec<f32> {
        let noise = random_blocks(BlockType::Q8_0, count.div_ceil(17), seed);
        noise.chunks_exact(2).take(count).map(|pair| f32::from(pair[0] as i8) / (1.0 + f32::from(pair[1]))).collect()
    }

    /// The exact product of a row's values and a token, and what rounding the token to 8 bits may change in it.
    fn exact(row: &[f32], token: &[f32]) -> (f64, f64) {
        let groups = row.chunks_exact(GROUP).zip(token.chunks_exact(GROUP));
        groups.fold((0.0, 0.0), |(sum, bound), (w, x)| {
            let half_scale = f64::from(x.iter().fold(0.0, |a: f32, x| a.max(x.abs()))) / 254.0;
            let of = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
                w.iter().zip(x).map(|(w, x)| f(f64::from(*w), f64::from(*x))).sum()
            };
            (sum + of(&|w, x| w * x), bound + of(&|w, x| w.abs() * (half_scale * 1.001 + 1e-5 * x.abs())))
        })
    }

    /// Products by each of the machine's instructions and by plain loops at each level.
    fn forms(block_type: BlockType, blocks: &[u8], tokens: &EightBitTokens, size: usize) -> Vec<(String, Vec<f32>)> {
        let mut forms = Vec::new();
        for level in SimdLevel::available() {
            let mut y = vec![9.0; size];
            level.dispatch(PlainRows { block_type, blocks, tokens, y: &mut y });
            forms.push((format!("plain at {level:?}"), y));
        }
        #[cfg(target_arch = "x86_64")]
        if block_type.has_integer_products() {
            for instructions in X86Instructions::available() {
                let mut y = vec![9.0; size];
                instructions.multiply(QuantizedRows { block_type, blocks, tokens }, &mut y);
                forms.push((format!("{instructions:?}"), y));
            }
        }
        forms
    }

    /// Rows of one block, of less than a step, of whole steps and of a step and a half; one token to nine.
    #[test]
    fn every_form_gives_the_exact_product_but_for_the_rounding_of_tokens() {
        for block_type in BlockType::ALL {
            let values = block_type.block_values();
            for (in_row, tokens) in [(1, 1), (3, 9), (8, 2), (18, 4), (12, 6)] {
                let (rows, columns) = (5, in_row * values);
                let blocks = random_blocks(block_type, rows * in_row, 3);
                let mut w = vec![0.0; rows * columns];
                block_type.dequantize(&blocks, &mut w);
                let x = random_tokens(tokens * columns, 11);
                for (form, y) in forms(block_type, &blocks, &EightBitTokens::new(&x, columns), rows * tokens) {
                    for (i, y) in y.iter().enumerate() {
                        let (r, t) = (i / tokens, i % tokens);
                        let (sum, bound) = exact(&w[r * columns..][..columns], &x[t * columns..][..columns]);
                        let error = (f64::from(*y) - sum).abs();
                        assert!(error <= bound, "{block_type:?} {form} row {r} token {t}: {y}, not {sum} +- {bound}");
                    }
                }
            }
        }
    }

    /// A token alone, and the same token among others.
    #[test]
    fn forms_agree_and_a_token_s_product_does_not_depend_on_the_others() {
        for block_type in BlockType::ALL {
            let (rows, columns, tokens) = (3, 768, 6);
            let blocks = random_blocks(block_type, rows * columns / block_type.block_values(), 5);
            let x = random_tokens(tokens * columns, 13);
            let together = forms(block_type, &blocks, &EightBitTokens::new(&x, columns), rows * tokens);
            let size = together[0].1.iter().fold(0.0, |a: f32, y| a.max(y.abs()));
            for t in 0..tokens {
                let alone = EightBitTokens::new(&x[t * columns..][..columns], columns);
                for ((form, all), (_, one)) in together.iter().zip(forms(block_type, &blocks, &alone, rows)) {
                    for r in 0..rows {
                        assert_eq!(all[r * tokens + t], one[r], "{block_type:?} {form}");
                        let difference = (one[r] - together[0].1[r * tokens + t]).abs();
                        assert!(difference <= 1e-5 * size, "{block_type:?} {form}: {difference} of {size}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_value_that_is_not_finite_is_not_lost() {
        for block_type in BlockType::ALL.into_iter().filter(|block_type| block_type.has_integer_products()) {
            let columns = 256;
            let blocks = random_blocks(block_type, columns / block_type.block_values(), 5);
            let mut x = vec![1.0; columns];
            x[77] = f32::NAN;
            for (form, y) in forms(block_type, &blocks, &EightBitTokens::new(&x, columns), 1) {
                assert!(!y[0].is_finite(), "{block_type:?} {form}");
            }
        }
    }
}
