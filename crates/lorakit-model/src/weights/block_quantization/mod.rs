//! Weights in GGML's block types: some values share a scale, and a value has 2 to 8 bits.

mod block_type;
mod blocks_of_256;
mod blocks_of_32;
mod unpacked;

pub use block_type::{BlockType, ggml_type_name};
