//! Scores of a small real model: one program, so that it is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod fixture;
mod generation;
mod lm_eval_parity;
mod reference_scores;
