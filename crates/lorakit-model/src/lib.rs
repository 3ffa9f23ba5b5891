//! Base models: Mistral's form and Phi's, differentiable where adapters are trained, with one slot per site.
//!
//! A [`Base`] is opened from a Hugging Face folder; its weights stay in the mapped file. It offers
//! [`Base::embed`], [`Base::layer`] and [`Base::head`] rather than one closed forward, so that a trainer can go
//! backward a layer at a time: in candle's graph, or, where a frozen base's adapters train on a CPU, by a
//! [`Tape`](layer::tape::Tape) of [`Base::taped_layer`]. Inside, everything is `[tokens, d]`: rows are [`Packed`], padding does
//! not exist. What sits in the slots is given with each call as [`lorakit_lora::Patches`].
//!
//! The crate knows no router, no merge, no trainer, no task and no tokenizer.

pub mod attention;
pub mod base;
pub mod batch_parallel;
mod card;
pub mod checkpoint;
pub mod config;
pub mod decode;
mod fingerprint;
mod folder;
pub mod layer;
mod lazy;
mod mistral;
pub mod packed;
mod phi;
pub mod plan;
pub mod rewrite;
pub mod sample;
mod sequence_loss;
pub mod weight;
mod weights;

pub use base::Base;
pub use batch_parallel::BatchParallel;
pub use checkpoint::{Bytes, Checkpoint};
pub use config::{Config, Form};
pub use decode::Decoding;
pub use packed::{Packed, Target};
pub use plan::Plan;
pub use rewrite::Rounding;
pub use sequence_loss::{NllSum, ScoredRow, split_by_tokens, sums_by_row};
pub use weight::Element;
pub use weights::Options;
