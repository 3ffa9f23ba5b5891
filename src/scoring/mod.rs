//! Evaluation runs: failures, and results on disk.

pub mod failures;
pub mod results_store;
