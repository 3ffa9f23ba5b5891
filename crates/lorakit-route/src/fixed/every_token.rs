//! One low-rank product on every token.

use crate::mixing;
use candle_core::Tensor;
use lorakit_lora::{GroupedLora, Outputs, Patch, SequenceBatch, TokenGroup, TokenSelection};
use std::sync::Arc;

/// The first layout of a grouped product, on every token.
pub(crate) struct EveryToken(pub(crate) GroupedLora);

impl Patch for EveryToken {
    fn add(&self, x: &Tensor, _: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let all = TokenGroup { expert: 0, tokens: TokenSelection::Contiguous(0..x.dim(0)?), weights: None };
        mixing::add(&self.0, x, Arc::new([all]), out)
    }
}
