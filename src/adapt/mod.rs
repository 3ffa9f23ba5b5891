//! From a library to one target task: what training starts from, weights that are fitted to a few rows, and the check of
//! what came of it on rows that nothing was fitted to.

pub mod check;
pub mod compose;
pub mod fits;
pub mod method;
pub mod skills;
pub mod start;
