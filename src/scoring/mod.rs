//! Evaluation runs: failures, and results on disk.

pub mod failures;
pub mod results_store;
pub mod truncation;
pub mod unseen_rows;
