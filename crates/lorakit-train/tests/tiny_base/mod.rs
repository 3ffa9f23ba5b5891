//! The tiny random bases in `tests/fixtures/peft`, such as `mistral` (sliding window of 7), `phi` and `gemma3`; 32 tokens,
//! two layers. Beside them `t5`, an encoder-decoder of two layers each.
#![allow(clippy::unwrap_used, dead_code)]

use lorakit_model::{Base, BaseOptions};
use std::path::PathBuf;

/// The model folder of a base.
pub fn folder(name: &str) -> PathBuf {
    let folder = if name == "t5" { "../../tests/fixtures" } else { "../../tests/fixtures/peft" };
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder).join(name).join("base")
}

/// Opens a base.
pub fn base(name: &str, options: &BaseOptions) -> Base {
    Base::open(&folder(name), options).unwrap()
}
