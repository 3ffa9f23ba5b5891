//! Evaluation runs: which rows are scored, where they are routed, failures, and results on disk.

pub mod eval_config;
pub mod eval_run;
pub mod evaluated_pairs;
pub mod failures;
pub mod prepared_routers;
pub mod results_store;
pub mod routing_shares;
pub mod row_counts;
pub mod samples_replacement;
pub mod setting_differences;
pub mod truncation;
pub mod unseen_rows;
