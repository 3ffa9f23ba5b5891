//! Adapters that are to be added to a library: read, checked against the base, the library and each other.

pub mod compatibility;
pub mod named_folder;
pub mod new_expert;
pub mod new_experts;
pub mod refusal;
pub mod warnings;
