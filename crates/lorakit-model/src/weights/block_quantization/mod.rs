//! Weights in GGML's block types: some values share a scale, and a value has 2 to 8 bits.
//!
//! - [`block_type`]: the types, and their values as f32.
//! - `unpacked_block`, `blocks_of_32`, `blocks_of_256`: how a block of each type is read.
//! - `eight_bit_tokens`, `integer_products`: products with tokens that are rounded to 8 bits.
//! - `x86_rows`, and what it is made of: the same products by the integer instructions of x86.

mod block_type;
mod blocks_of_256;
mod blocks_of_32;
mod eight_bit_tokens;
mod integer_products;
mod unpacked_block;
#[cfg(target_arch = "x86_64")]
mod x86_blocks_of_256;
#[cfg(target_arch = "x86_64")]
mod x86_blocks_of_32;
#[cfg(target_arch = "x86_64")]
mod x86_dot_product;
#[cfg(target_arch = "x86_64")]
mod x86_row_sums;
#[cfg(target_arch = "x86_64")]
mod x86_rows;

pub use block_type::BlockType;
pub(crate) use eight_bit_tokens::EightBitTokens;
