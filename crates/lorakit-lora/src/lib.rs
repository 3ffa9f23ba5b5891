//! The injection point of a base model, and the ops of low-rank adapters that run there.
//!
//! A [`Site`] is a place where several projections of a base read the same input, as q, k and v do. A [`Patch`] is a forward
//! hook of a site: it reads the site's input and adds to its outputs. The base calls it with a [`SequenceBatch`], which says
//! which of the packed tokens belong to which sequence, so that a batch can mix sequences of many experts.
//!
//! Everything is `[tokens, features]`; padding does not exist. The experts of a site are mostly stacked, A's by rows and B's
//! by columns, at the ranges that a [`StackLayout`] names:
//! - [`GroupedLora`] applies to each [`TokenGroup`] its expert, with constant weights, of experts that are stacked or each in
//!   its own matrices;
//! - [`PerTokenLora`] mixes all experts with a tensor of weights per token;
//! - [`WeightedLora`] mixes all experts with one weight each, which can be learned;
//! - [`LoraLinear`] is a [`FrozenLinear`] with trained adapters, as one op.
//!
//! An op is written once, as an [`Op`](kernels::op::Op), and serves candle's graph and a tape; where there is no kernel
//! (on a GPU) it is composed of candle's own ops, which is also what tests compare with.
//!
//! The crate knows no model, no router, no trainer and no file.
//!
//! ```
//! use candle_core::{Device, Result, Tensor};
//! use lorakit_lora::{GroupedLora, Outputs, Patch, Patches, Sequence, SequenceBatch, StackBlock, StackLayout, TokenGroup};
//! use std::sync::Arc;
//!
//! /// Gives each sequence its own expert.
//! struct PerSequence(GroupedLora);
//!
//! impl Patch for PerSequence {
//!     fn add(&self, x: &Tensor, batch: &SequenceBatch, out: &mut Outputs) -> Result<()> {
//!         self.0.add(x, TokenGroup::of_sequences(batch), out)
//!     }
//! }
//!
//! // Two experts of rank 1 at a site of two inputs and one output.
//! let a = Tensor::new(&[[1f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
//! let b = Tensor::new(&[[10f32], [100.0]], &Device::Cpu)?;
//! let block = |expert| StackBlock { a: expert..expert + 1, b: expert..expert + 1, columns: 0..1, scale: 2.0 };
//! let layout = StackLayout(vec![vec![block(0)], vec![block(1)]]);
//! let patches = Patches::new(vec![Some(Arc::new(PerSequence(GroupedLora::new(a, b, layout.into())?)))]);
//!
//! // A sequence of two tokens with the first expert, and one of one token with the second.
//! let batch = SequenceBatch::new([
//!     Sequence { start: 0, len: 2, expert: Some(0), ..Sequence::default() },
//!     Sequence { start: 2, len: 1, expert: Some(1), ..Sequence::default() },
//! ]);
//! let x = Tensor::new(&[[1f32, 5.0], [2.0, 5.0], [1.0, 5.0]], &Device::Cpu)?;
//! let mut out = Outputs::new(Tensor::zeros((3, 1), candle_core::DType::F32, &Device::Cpu)?);
//! patches.at(0).unwrap().add(&x, &batch, &mut out)?;
//! assert_eq!(out.into_tensor().to_vec2::<f32>()?, [[20.0], [40.0], [1000.0]]);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod factor_rows;
mod frozen_linear;
pub mod kernels;
mod ops;
mod patch;
mod rounding_noise;
mod sequence_batch;
mod site;
mod stack_layout;

pub use factor_rows::{ExpertFactors, FactorRows};
pub use frozen_linear::FrozenLinear;
pub use ops::{
    DropoutMask, GradientSink, GroupedLora, LoraLinear, PerTokenLora, SparseGradients, TokenGroup, TokenSelection,
    WeightedLora,
};
pub use patch::{Addition, EmbeddingPatch, Outputs, Patch, Patches};
pub use rounding_noise::RoundingNoise;
pub use sequence_batch::{Sequence, SequenceBatch};
pub use site::{Projection, Site, SiteRole};
pub use stack_layout::{StackBlock, StackLayout};
