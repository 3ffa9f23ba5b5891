//! Rows in a batch are as alone, over bases with windows, caps, partial rotation, and rotation by length.
#![allow(clippy::unwrap_used)]

mod batched_rows;
mod differences;

use std::path::Path;

#[test]
fn rows_in_a_batch_are_as_alone() {
    for name in ["mistral", "phi", "llama", "gemma3", "phi3", "olmo2"] {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/peft").join(name).join("base");
        assert!(batched_rows::check(&base, 1e-4) < 10, "{name}");
        batched_rows::check_bits(&base);
    }
}
