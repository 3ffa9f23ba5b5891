//! Clusters on the terminal.

pub mod tables;
