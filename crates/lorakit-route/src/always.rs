//! A patch that gives every token the same experts.

use crate::mixing;
use candle_core::Tensor;
use lorakit_lora::{Group, Grouped, Outputs, Patch, Rows, Tokens};
use std::sync::Arc;

/// All that the first layout of a grouped product holds, on every token.
pub(crate) struct Always(pub(crate) Grouped);

impl Patch for Always {
    fn add(&self, x: &Tensor, _: &Rows, out: &mut Outputs) -> candle_core::Result<()> {
        let all = Group { expert: 0, tokens: Tokens::Run(0..x.dim(0)?), weights: None };
        mixing::add(&self.0, x, Arc::new([all]), out)
    }
}
