//! Comparisons of routers over tasks and seeds.

pub mod paired_difference;
pub mod verdict;
