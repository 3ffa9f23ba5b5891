//! What is evaluated: a base with its tokenizer, its patches, and what rows carry for the patches to read.

use crate::error::{EvalError, Result, RoutingError};
use lorakit_lora::{Patches, Sequence};
use lorakit_model::{Base, TokenPrecision};
use lorakit_task::Tokenizer;

/// A base with patches at its sites.
#[derive(Clone)]
pub struct PatchedModel<'a> {
    /// The base.
    pub base: &'a Base,
    /// The base's tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The patches; [`Patches::none`] for the base itself.
    pub patches: &'a Patches,
    /// What rows carry for the patches to read; `&Sequence::default()` if they read nothing.
    pub routing: &'a dyn PromptRouting,
    /// The precision of the tokens of rows that are scored, over quantized weights. Texts are generated in that of
    /// [`BaseOptions::decoding`](lorakit_model::BaseOptions).
    pub precision: TokenPrecision,
}

/// Decides what a row carries by its prompt, such as its weights over a library's experts.
///
/// It is called once per row and forward, and sees only prompts: what a row carries never depends on its answer, and all
/// choices of a question share it.
pub trait PromptRouting: Sync {
    /// What the row of each prompt carries. Every prompt has at least one token.
    ///
    /// # Errors
    /// If it cannot be decided, for instance because a forward over the prompts fails.
    fn route(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>, RoutingError>;
}

/// All rows carry the same.
impl PromptRouting for Sequence {
    fn route(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>, RoutingError> {
        Ok(vec![self.clone(); prompts.len()])
    }
}

impl PatchedModel<'_> {
    /// What the rows of `prompts` carry.
    pub(crate) fn route(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>> {
        let rows = self.routing.route(prompts).map_err(EvalError::Routing)?;
        match rows.len() == prompts.len() {
            true => Ok(rows),
            false => Err(EvalError::RoutedRows { found: rows.len(), expected: prompts.len() }),
        }
    }

    /// The longest sequence that the base can process.
    pub(crate) fn max_length(&self) -> usize {
        self.base.config().max_positions
    }
}
