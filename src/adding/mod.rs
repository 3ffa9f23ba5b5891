//! Adapters that are to be added to a library: read, checked against the base, the library and each other.

pub mod candidate;
pub mod candidates;
pub mod compatibility;
pub mod named_folder;
pub mod warnings;
