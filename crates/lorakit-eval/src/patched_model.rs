//! What is scored: a base, its tokenizer, and what sits in its slots.

use anyhow::{Result, ensure};
use lorakit_model::Base;
use lorakit_task::Tokenizer;

use lorakit_lora::{Patches, Sequence};

/// A base with patches in its slots. How the patches choose their experts is theirs to know.
#[derive(Clone)]
pub struct PatchedModel<'a> {
    /// The base.
    pub base: &'a Base,
    /// The base's tokenizer.
    pub vocabulary: &'a Tokenizer,
    /// What sits in the base's slots; [`Patches::none`] for the base as it is.
    pub patches: &'a Patches,
    /// What rows carry for the patches to read: `&Sequence::default()` where they read nothing.
    pub routing: &'a dyn PromptRouting,
}

/// What rows carry for the patches to read, such as their weights over a library's experts, by their prompts.
///
/// It is asked once for each row and forward, with the prompt alone: what a row carries never depends on its answer, and
/// the choices of a question share it.
pub trait PromptRouting: Sync {
    /// For each of `prompts`, tokens with at least one each, what its row carries.
    ///
    /// # Errors
    /// Where it cannot be decided, as when a pass over the prompts fails.
    fn of(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>>;
}

/// Every row carries the same.
impl PromptRouting for Sequence {
    fn of(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>> {
        Ok(vec![self.clone(); prompts.len()])
    }
}

impl PatchedModel<'_> {
    /// What the rows of `prompts` carry.
    pub(crate) fn routing(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>> {
        let rows = self.routing.of(prompts)?;
        ensure!(rows.len() == prompts.len(), "{} prompts were given {} rows", prompts.len(), rows.len());
        Ok(rows)
    }

    /// The longest sequence that may be scored.
    pub(crate) fn max_length(&self) -> usize {
        self.base.config().max_positions
    }
}
