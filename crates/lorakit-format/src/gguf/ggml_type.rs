//! The types of GGML's tensors: how many values a block has, and how many bytes
//! (<https://github.com/ggml-org/ggml/blob/master/include/ggml.h>).

use std::fmt;

/// A type of tensor values, which are stored in blocks; a block of a plain type is one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GgmlType {
    /// Its number in files, `GGML_TYPE_*`.
    pub number: u32,
    /// Its name, as in `Q4_K`.
    pub name: &'static str,
    /// Values of a block.
    pub block_values: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
}

/// All types that are in files; numbers between them were given up.
const TYPES: [GgmlType; 34] = [
    GgmlType::F32,
    GgmlType::F16,
    of(2, "Q4_0", 32, 18),
    of(3, "Q4_1", 32, 20),
    of(6, "Q5_0", 32, 22),
    of(7, "Q5_1", 32, 24),
    of(8, "Q8_0", 32, 34),
    of(9, "Q8_1", 32, 36),
    of(10, "Q2_K", 256, 84),
    of(11, "Q3_K", 256, 110),
    of(12, "Q4_K", 256, 144),
    of(13, "Q5_K", 256, 176),
    of(14, "Q6_K", 256, 210),
    of(15, "Q8_K", 256, 292),
    of(16, "IQ2_XXS", 256, 66),
    of(17, "IQ2_XS", 256, 74),
    of(18, "IQ3_XXS", 256, 98),
    of(19, "IQ1_S", 256, 50),
    of(20, "IQ4_NL", 32, 18),
    of(21, "IQ3_S", 256, 110),
    of(22, "IQ2_S", 256, 82),
    of(23, "IQ4_XS", 256, 136),
    of(24, "I8", 1, 1),
    of(25, "I16", 1, 2),
    of(26, "I32", 1, 4),
    of(27, "I64", 1, 8),
    of(28, "F64", 1, 8),
    of(29, "IQ1_M", 256, 56),
    GgmlType::BF16,
    of(34, "TQ1_0", 256, 54),
    of(35, "TQ2_0", 256, 66),
    of(39, "MXFP4", 32, 17),
    of(40, "NVFP4", 64, 36),
    of(41, "Q1_0", 128, 18),
];

const fn of(number: u32, name: &'static str, block_values: usize, block_bytes: usize) -> GgmlType {
    GgmlType { number, name, block_values, block_bytes }
}

impl GgmlType {
    /// 32-bit floating point.
    pub const F32: Self = of(0, "F32", 1, 4);
    /// IEEE's 16-bit floating point.
    pub const F16: Self = of(1, "F16", 1, 2);
    /// The upper 16 bits of an F32.
    pub const BF16: Self = of(30, "BF16", 1, 2);

    /// The type of that number, if there is one.
    pub fn by_number(number: u32) -> Option<Self> {
        TYPES.into_iter().find(|ggml| ggml.number == number)
    }

    /// The type of that name, if there is one.
    pub fn by_name(name: &str) -> Option<Self> {
        TYPES.into_iter().find(|ggml| ggml.name == name)
    }

    /// The bytes of `values` values; none where they do not fill whole blocks, or are too many to address.
    pub fn bytes(self, values: usize) -> Option<usize> {
        let blocks = values.is_multiple_of(self.block_values).then(|| values / self.block_values)?;
        blocks.checked_mul(self.block_bytes)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_found_by_number_and_name_and_hold_whole_blocks() {
        for ggml in TYPES {
            assert_eq!((GgmlType::by_number(ggml.number), GgmlType::by_name(ggml.name)), (Some(ggml), Some(ggml)));
        }
        assert_eq!((GgmlType::by_number(4), GgmlType::by_name("Q4_2")), (None, None));
        let q4_k = GgmlType::by_number(12);
        assert_eq!(q4_k.map(|ggml| (ggml.bytes(512), ggml.bytes(500))), Some((Some(288), None)));
        assert_eq!(GgmlType::F32.bytes(usize::MAX), None);
    }
}
