//! Files without tensors: what every other crate needs to read and write them safely.

pub mod atomic;
pub mod hash;
mod limited_read;
pub mod mmap;
pub mod rng;

pub use limited_read::read_text;
