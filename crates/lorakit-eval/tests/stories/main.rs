//! Scores of a small real model: one program, so that it is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod generation;
mod lm_eval;
mod model;
mod scores;
