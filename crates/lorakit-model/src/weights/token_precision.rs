//! How precisely products with quantized weights read tokens.

/// The precision of the tokens that quantized weights are multiplied with. Over other weights it changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenPrecision {
    /// In f32: results are those of the dequantized weights.
    #[default]
    Exact,
    /// Rounded to 8 bits with a scale for each 32 values, as llama.cpp does: several times as fast where one or few tokens
    /// are decoded at a time.
    EightBit,
}
