//! Scores of small trained models, in one program so that it is linked once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod fixture;
mod generation;
mod lm_eval_parity;
mod reference_scores;
