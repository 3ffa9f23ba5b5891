//! The tokenizer and the chat template that a GGUF file holds.

pub(crate) mod byte_level_pre_tokenizer;
pub(crate) mod gguf_tokenizer;
pub(crate) mod gguf_vocabulary;
pub(crate) mod sentence_pieces;
