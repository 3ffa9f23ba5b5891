//! How llama.cpp's converter writes an architecture: beside each architecture's descriptor.

use crate::architecture::gguf::gguf_keys::GgufKeys;
use crate::error::Result;
use serde_json::{Map, Value};

/// How llama.cpp's `convert_hf_to_gguf.py` writes an architecture. Names of tensors follow from the descriptor.
#[derive(Debug)]
pub(crate) struct GgufMapping {
    /// `general.architecture`.
    pub(crate) architecture: &'static str,
    /// The class of its models in transformers.
    pub(crate) class: &'static str,
    /// Whether the rows of each head of q and k are reordered: llama.cpp then rotates neighboring features where Hugging
    /// Face's model rotates the two halves of a head.
    pub(crate) interleaved: bool,
    /// Adds to the keys of config.json that all architectures share those that this one has besides.
    pub(crate) add_keys: fn(&GgufKeys, &mut Map<String, Value>) -> Result<()>,
}
