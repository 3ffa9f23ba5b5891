//! `cargo fuzz run gguf`.
#![no_main]

#[allow(dead_code, reason = "each target is one entry")]
#[path = "../entries.rs"]
mod entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| entries::in_own_folder(entries::gguf, bytes));
