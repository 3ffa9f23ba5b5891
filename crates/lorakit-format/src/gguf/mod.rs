//! GGUF files (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>), little-endian: metadata by key, then tensors
//! by name, whose values are aligned.
//!
//! [`GgufFile`] reads one, [`GgufShards`] a model that is split into several; [`write_file`] writes one. A tensor's values
//! are bytes here, in blocks of a [`GgmlType`]: what the blocks mean is not known.

mod byte_reader;
mod ggml_type;
mod gguf_file;
mod gguf_layout;
mod gguf_shards;
mod gguf_value;
mod gguf_writer;

pub use ggml_type::GgmlType;
pub use gguf_file::{GgufEntry, GgufFile};
pub use gguf_shards::{GgufShards, shard_names};
pub use gguf_value::GgufValue;
pub use gguf_writer::{GgufHeader, GgufTensor, write_file};
