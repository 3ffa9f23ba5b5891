//! Scores of small trained models, and tables of other crates that must agree, in one test binary so that it is linked
//! only once.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod batched_generation;
mod fixture;
mod generation;
mod lm_eval_parity;
mod reference_scores;
mod registered_tokenizer_classes;
