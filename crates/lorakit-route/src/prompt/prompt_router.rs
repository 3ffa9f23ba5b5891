//! Routers that decide for whole rows, from one pass of the base over their prompts before anything is predicted.

use crate::error::Result;
use candle_core::Tensor;
use lorakit_lora::{Patches, SequenceBatch};
use std::sync::Arc;

/// Gives each row its weights by its prompt. The caller runs the base over the prompts under [`PromptPass::patches`],
/// asks for [`PromptPass::weights`], and gives them to the rows ([`lorakit_lora::Sequence::weights`]) under the patches
/// of [`crate::Router::patches`].
pub trait PromptRouter: Send + Sync {
    /// Starts one pass.
    fn start(&self) -> Box<dyn PromptPass>;
}

/// One pass over prompts.
pub trait PromptPass {
    /// Patches that observe the pass and add nothing.
    fn patches(&self) -> Patches;

    /// The weights of every expert for each of `rows`, the prompts of the pass. `hidden`, `[tokens, hidden]`, is the
    /// output of the last layer, before the final norm.
    ///
    /// # Errors
    /// If the pass was not over these rows.
    fn weights(&self, rows: &SequenceBatch, hidden: &Tensor) -> Result<Vec<Arc<[f32]>>>;
}
