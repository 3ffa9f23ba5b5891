//! Formats for other programs.

pub(crate) mod gguf_adapter;
pub(crate) mod hub;
