//! Bases in GGUF files: from llama.cpp's keys and names to the configuration and the names of Hugging Face's model.

pub(crate) mod gguf_config;
pub(crate) mod gguf_keys;
pub(crate) mod gguf_mapping;
pub(crate) mod gguf_rope;
pub(crate) mod gguf_tensor_names;
