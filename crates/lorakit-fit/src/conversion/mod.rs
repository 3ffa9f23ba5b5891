//! Adapters that change weights by more than a low rank, made low-rank with the base that they were trained on.

mod convert;
mod exact_patches;
mod weight_change;

pub use convert::{Conversion, ConvertedModule, convert, ensure_copies};
