//! One low-rank product on every token.

use crate::mixing;
use candle_core::Tensor;
use lorakit_lora::{Addition, GroupedLora, Outputs, Patch, SequenceBatch, TokenGroup, TokenSelection};
use std::sync::Arc;

/// The first layout of a grouped product, on every token.
pub(crate) struct EveryToken(pub(crate) GroupedLora);

impl Patch for EveryToken {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        self.begin(x, rows)?(out)
    }

    fn begin<'a>(&'a self, x: &'a Tensor, _: &'a SequenceBatch) -> candle_core::Result<Addition<'a>> {
        let all = TokenGroup { expert: 0, tokens: TokenSelection::Contiguous(0..x.dim(0)?), weights: None };
        mixing::begin(&self.0, x, Arc::new([all]))
    }
}
