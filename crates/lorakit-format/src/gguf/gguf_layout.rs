//! The constants of a GGUF file.

/// What a file starts with.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// The key of the alignment of tensors within the data.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// The alignment where that key is absent.
pub(super) const ALIGNMENT: usize = 32;
