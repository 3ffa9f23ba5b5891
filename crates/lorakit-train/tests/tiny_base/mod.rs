//! The tiny random bases in `tests/fixtures/peft`, such as `mistral` (sliding window of 7), `phi` and `gemma3`; 32 tokens,
//! two layers.
#![allow(clippy::unwrap_used, dead_code)]

use lorakit_model::{Base, BaseOptions};
use std::path::PathBuf;

/// The model folder of a base.
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft").join(name).join("base")
}

/// Opens a base.
pub fn base(name: &str, options: &BaseOptions) -> Base {
    Base::open(&folder(name), options).unwrap()
}
