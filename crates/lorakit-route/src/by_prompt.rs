//! Routers that decide for whole rows, from one pass of the base over their prompts before anything is predicted.

use crate::error::Result;
use candle_core::Tensor;
use lorakit_lora::{Patches, SequenceBatch};
use std::sync::Arc;

/// A router that gives each row its weights by its prompt. Whoever has the base runs it over the prompts with
/// [`Survey::patches`] in its slots, asks [`Survey::weights`], and lets the rows carry what it is told
/// ([`lorakit_lora::Sequence::weights`]) under the patches of [`crate::Router::build`].
pub trait ByPrompt: Send + Sync {
    /// Looks at one pass.
    fn survey(&self) -> Box<dyn Survey>;
}

/// One pass over prompts that is being looked at.
pub trait Survey {
    /// Patches that see the pass and add nothing.
    fn patches(&self) -> Patches;

    /// The weights of every expert for each of `rows`, the prompts of the pass. `hidden`, `[tokens, hidden]`, is what the
    /// last layer made of them, before the last norm.
    ///
    /// # Errors
    /// Where the pass was not over these rows.
    fn weights(&self, rows: &SequenceBatch, hidden: &Tensor) -> Result<Vec<Arc<[f32]>>>;
}
