//! Evaluation runs: which rows are scored, failures, and results on disk.

pub mod evaluated_pairs;
pub mod failures;
pub mod prepared_routers;
pub mod results_store;
pub mod row_counts;
pub mod truncation;
pub mod unseen_rows;
