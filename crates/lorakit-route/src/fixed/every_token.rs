//! One low-rank product on every token.

use crate::site_lora::SiteLora;
use candle_core::Tensor;
use lorakit_lora::{Addition, Outputs, Patch, SequenceBatch, TokenGroup, TokenSelection};
use std::sync::Arc;

/// The first slot of a product, on every token.
pub(crate) struct EveryToken(pub(crate) SiteLora);

impl Patch for EveryToken {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        self.begin(x, rows)?(out)
    }

    fn begin<'a>(&'a self, x: &'a Tensor, _: &'a SequenceBatch) -> candle_core::Result<Addition<'a>> {
        let all = TokenGroup { expert: 0, tokens: TokenSelection::Contiguous(0..x.dim(0)?), weights: None };
        self.0.begin(x, Arc::new([all]))
    }
}
