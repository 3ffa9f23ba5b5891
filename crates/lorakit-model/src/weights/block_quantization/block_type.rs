//! Which block types are read, and their values as f32.

use super::unpacked_block::UnpackedBlock;
use super::{blocks_of_32, blocks_of_256};
use lorakit_format::gguf::GgmlType;
use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use std::hint::black_box;

/// A block type of GGML whose weights are computed with. The layouts are those of ggml's `ggml-common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType {
    /// 32 values of 4 bits with a scale.
    Q4_0,
    /// 32 values of 4 bits with a scale and a minimum.
    Q4_1,
    /// 32 values of 5 bits with a scale.
    Q5_0,
    /// 32 values of 5 bits with a scale and a minimum.
    Q5_1,
    /// 32 values of 8 bits with a scale.
    Q8_0,
    /// 256 values of 2 bits; each 16 have a scale and a minimum of 4 bits.
    Q2K,
    /// 256 values of 3 bits; each 16 have a scale of 6 bits.
    Q3K,
    /// 256 values of 4 bits; each 32 have a scale and a minimum of 6 bits.
    Q4K,
    /// 256 values of 5 bits; each 32 have a scale and a minimum of 6 bits.
    Q5K,
    /// 256 values of 6 bits; each 16 have a scale of 8 bits.
    Q6K,
    /// 32 of 16 unevenly spaced values, with a scale.
    Iq4Nl,
}

impl BlockType {
    /// Every block type that is read.
    pub const ALL: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::Iq4Nl,
    ];

    /// The block type with GGML's number `number`, or none if it is not one that is read.
    pub fn from_ggml(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|block_type| block_type.ggml_number() == number)
    }

    /// Its number among GGML's tensor types.
    pub fn ggml_number(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Iq4Nl => 20,
        }
    }

    /// Its name in GGML, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        GgmlType::by_number(self.ggml_number()).map_or("", |ggml| ggml.name)
    }

    /// Values in a block.
    pub fn block_values(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::Iq4Nl => 32,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 | Self::Iq4Nl => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q3K => 110,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// Writes the values of whole blocks as f32: those of ggml's own dequantization, bit for bit. The bytes may start at any
    /// address.
    ///
    /// # Panics
    /// If the numbers of bytes and values are not those of the same number of whole blocks: a bug of the caller, who has
    /// checked the file.
    pub fn dequantize(self, blocks: &[u8], values: &mut [f32]) {
        let count = blocks.len() / self.block_bytes();
        assert_eq!(blocks.len(), count * self.block_bytes(), "bytes of whole {} blocks", self.name());
        assert_eq!(values.len(), count * self.block_values(), "values of {count} {} blocks", self.name());
        simd::dispatch(Dequantize { block_type: self, blocks, values });
    }
}

struct Dequantize<'a> {
    block_type: BlockType,
    blocks: &'a [u8],
    values: &'a mut [f32],
}

impl WithSimd for Dequantize<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { block_type, blocks, values } = self;
        match block_type {
            BlockType::Q4_0 => each(blocks, values, blocks_of_32::q4_0),
            BlockType::Q4_1 => each(blocks, values, blocks_of_32::q4_1),
            BlockType::Q5_0 => each(blocks, values, blocks_of_32::q5_0),
            BlockType::Q5_1 => each(blocks, values, blocks_of_32::q5_1),
            BlockType::Q8_0 => each(blocks, values, blocks_of_32::q8_0),
            BlockType::Q2K => each(blocks, values, blocks_of_256::q2_k),
            BlockType::Q3K => each(blocks, values, blocks_of_256::q3_k),
            BlockType::Q4K => each(blocks, values, blocks_of_256::q4_k),
            BlockType::Q5K => each(blocks, values, blocks_of_256::q5_k),
            BlockType::Q6K => each(blocks, values, blocks_of_256::q6_k),
            BlockType::Iq4Nl => blocks_of_32::write_iq4_nl(blocks, values),
        }
    }
}

/// Writes the values of one block after the other.
#[inline(always)]
fn each<const BYTES: usize, const GROUPS: usize, const SIZE: usize>(
    blocks: &[u8],
    values: &mut [f32],
    unpack: impl Fn(&[u8; BYTES]) -> UnpackedBlock<GROUPS, SIZE>,
) {
    for (block, values) in blocks.as_chunks().0.iter().zip(values.chunks_exact_mut(GROUPS * SIZE)) {
        // Opaque, or the compiler gathers from several short blocks at once, which is slower.
        unpack(black_box(block)).write(values);
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::quantized::{GgmlDType, QStorage, QTensor};
    use candle_core::{Device, Tensor};

    /// Where the 16-bit scales of a block are.
    fn scales(block_type: BlockType) -> &'static [usize] {
        match block_type {
            BlockType::Q4_0 | BlockType::Q5_0 | BlockType::Q8_0 | BlockType::Iq4Nl => &[0],
            BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q4K | BlockType::Q5K => &[0, 2],
            BlockType::Q2K => &[80, 82],
            BlockType::Q3K => &[108],
            BlockType::Q6K => &[208],
        }
    }

    /// Blocks of random bytes (Knuth's MMIX generator) whose scales are finite and below 2.
    pub(in super::super) fn random_blocks(block_type: BlockType, count: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        let mut blocks: Vec<u8> = (0..count * block_type.block_bytes()).map(|_| next()).collect();
        for block in blocks.chunks_exact_mut(block_type.block_bytes()) {
            for scale in scales(block_type) {
                block[scale + 1] &= 0xbf;
            }
        }
        blocks
    }

    fn dequantized(block_type: BlockType, blocks: &[u8]) -> Vec<f32> {
        let mut values = vec![9.0; blocks.len() / block_type.block_bytes() * block_type.block_values()];
        block_type.dequantize(blocks, &mut values);
        values
    }

    /// For 16 random blocks of each type: the FNV-1a hash of the values' bits, their first, 18th and last value.
    type Expected = (BlockType, u64, [f32; 3]);

    /// Computed by `dequantize` of the Python package gguf 0.19 on the same bytes.
    const BY_GGUF: [Expected; 11] = [
        (BlockType::Q4_0, 0x64b8_0e72_b1e2_c325, [1.108_646_4e-4, 7.390_976e-5, 1.318_931_6e-3]),
        (BlockType::Q4_1, 0x1f77_d04a_9720_5ad8, [0.012_571_096, 0.012_681_961, -0.115_844_73]),
        (BlockType::Q5_0, 0xa563_8ce9_c071_ab25, [-4.804_134_4e-4, -3.695_488e-5, 0.363_281_25]),
        (BlockType::Q5_1, 0x4b4b_bec3_1ba1_65f0, [0.012_164_593, 0.012_866_735, 27.776_001]),
        (BlockType::Q8_0, 0x6256_3b91_6472_c625, [3.362_894e-3, -1.921_653_7e-3, -0.149_362_56]),
        (BlockType::Q2K, 0x1626_3707_4b89_951f, [-5.447_387_7e-3, -7.263_183_6e-3, -1.555_855]),
        (BlockType::Q3K, 0x654d_2eb1_6251_70a5, [7.324_934e-3, -4.626_274e-3, 0.0]),
        (BlockType::Q4K, 0xce72_7042_1f57_e85a, [-0.290_385_25, -0.290_385_25, 96.691_06]),
        (BlockType::Q5K, 0x49fb_baa1_8f3f_1a5b, [-0.286_726_7, -0.287_946_22, -141.063_45]),
        (BlockType::Q6K, 0x40a5_24f8_c1d0_a53b, [-0.543_088_9, 0.042_045_593, -0.291_176_14]),
        (BlockType::Iq4Nl, 0xfc72_626b_f207_96a5, [1.293_420_8e-3, 8.130_073_5e-4, 0.016_706_467]),
    ];

    #[test]
    fn values_are_those_of_the_gguf_package_bit_for_bit() {
        for (block_type, hash, [first, inner, last]) in BY_GGUF {
            let values = dequantized(block_type, &random_blocks(block_type, 16, 1));
            assert_eq!([values[0], values[17], values[values.len() - 1]], [first, inner, last], "{block_type:?}");
            let step = |hash: u64, value: &f32| (hash ^ u64::from(value.to_bits())).wrapping_mul(0x0100_0000_01b3);
            assert_eq!(values.iter().fold(0xcbf2_9ce4_8422_2325, step), hash, "{block_type:?}");
        }
    }

    fn by_candle(block_type: BlockType, blocks: &[u8]) -> Option<Vec<f32>> {
        let dtype = match block_type {
            BlockType::Q4_0 => GgmlDType::Q4_0,
            BlockType::Q4_1 => GgmlDType::Q4_1,
            BlockType::Q5_0 => GgmlDType::Q5_0,
            BlockType::Q5_1 => GgmlDType::Q5_1,
            BlockType::Q8_0 => GgmlDType::Q8_0,
            BlockType::Q2K => GgmlDType::Q2K,
            BlockType::Q3K => GgmlDType::Q3K,
            BlockType::Q4K => GgmlDType::Q4K,
            BlockType::Q5K => GgmlDType::Q5K,
            BlockType::Q6K => GgmlDType::Q6K,
            BlockType::Iq4Nl => return None,
        };
        let count = blocks.len() / block_type.block_bytes() * block_type.block_values();
        let storage = QStorage::from_data(blocks.into(), &Device::Cpu, dtype).unwrap();
        let values: Tensor = QTensor::new(storage, count).unwrap().dequantize(&Device::Cpu).unwrap();
        Some(values.to_vec1().unwrap())
    }

    /// Bytes at an odd address too.
    #[test]
    fn values_are_those_of_candle() {
        for block_type in BlockType::ALL {
            let blocks = random_blocks(block_type, 9, 7);
            let Some(expected) = by_candle(block_type, &blocks) else { continue };
            let moved = [&[0], &blocks[..]].concat();
            for blocks in [&blocks[..], &moved[1..]] {
                assert_eq!(dequantized(block_type, blocks), expected, "{block_type:?}");
            }
        }
    }

    #[test]
    fn numbers_names_and_sizes_are_those_of_ggml() {
        assert_eq!(BlockType::from_ggml(12), Some(BlockType::Q4K));
        for block_type in BlockType::ALL {
            let ggml = GgmlType::by_number(block_type.ggml_number()).unwrap();
            let own = (block_type.block_values(), block_type.block_bytes());
            assert_eq!(own, (ggml.block_values, ggml.block_bytes), "{block_type:?}");
        }
        assert_eq!(
            BlockType::ALL.map(BlockType::name).join(" "),
            "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL"
        );
        for name in ["F32", "Q8_1", "IQ4_XS", "BF16", "MXFP4", "Q1_0"] {
            let ggml = GgmlType::by_name(name).unwrap();
            assert_eq!(BlockType::from_ggml(ggml.number), None, "{name}");
        }
    }
}
