//! Formats for other programs.

pub(crate) mod hub;
