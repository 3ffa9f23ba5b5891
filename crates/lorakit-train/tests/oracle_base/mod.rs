//! The small bases that the reference results are of.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use lorakit_model::{Base, BaseOptions};
use std::path::PathBuf;

/// The base of a name; none, with a notice, where the reference results are not at hand.
pub fn base(name: &str, options: &BaseOptions) -> Option<Base> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/peft").join(name).join("base");
    if !folder.exists() {
        eprintln!("skipped: no ../shared");
        return None;
    }
    Some(Base::open(&folder, options).unwrap())
}
