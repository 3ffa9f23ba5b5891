//! Weights: from a checkpoint's mapped files to what layers compute with, and back into files.

mod bitsandbytes;
mod block_quantization;
pub(crate) mod checkpoint;
mod checkpoint_names;
pub(crate) mod edit;
mod few_tokens;
mod four_bit_levels;
mod gguf_weights;
mod half_precision;
pub(crate) mod matrix_products;
pub(crate) mod mmap_matrix;
mod prefetch;
mod rounded_matrices;
mod save;
pub(crate) mod storage_dtype;
pub(crate) mod stored_weight;
mod tensor_equality;
mod token_lanes;
pub(crate) mod token_precision;
pub(crate) mod weight;
pub(crate) mod weight_loader;

pub use block_quantization::BlockType;
pub use checkpoint::{Checkpoint, INDEX_FILE, SINGLE_FILE, WeightType};
pub use edit::{Edit, Rounding};
pub use matrix_products::forward_side_by_side;
pub use mmap_matrix::MmapMatrix;
pub use storage_dtype::StorageDtype;
pub use token_precision::TokenPrecision;
pub use weight::Weight;
pub use weight_loader::BaseOptions;
