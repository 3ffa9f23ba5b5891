//! Tables of several evaluations: rows from any number of results.json, one run per seed, with a paper's own numbers beside
//! them and a verdict on each claim.
//!
//! [`table_spec`] is the TOML that says what the rows are, [`task_families`] the tasks that are alike, [`table_scores`] reads
//! the scores, [`missing_scores`] says why there are none, [`table_claims`] judges the claims, and [`markdown_table`] writes both.

pub mod markdown_table;
pub mod missing_scores;
pub mod table_claims;
pub mod table_scores;
pub mod table_spec;
pub mod task_families;
