//! Runs the base over prompts for a router that decides by them.

use lorakit_eval::{PromptRouting, RoutingError};
use lorakit_lora::{Sequence, SequenceBatch};
use lorakit_model::Base;
use lorakit_route::PromptRouter;
use std::sync::Arc;

/// Gives each row the weights that a router reads from its prompt, by a forward pass of the base over the prompts.
pub(super) struct BasePromptRouting<'a> {
    pub base: &'a Base,
    pub router: Arc<dyn PromptRouter>,
}

impl PromptRouting for BasePromptRouting<'_> {
    fn route(&self, prompts: &[&[u32]]) -> Result<Vec<Sequence>, RoutingError> {
        let pass = self.router.start();
        let rows = SequenceBatch::packed(prompts.iter().map(|prompt| prompt.len()));
        let hidden = self.base.hidden_states(&prompts.concat(), &self.base.plan(rows.clone()), &pass.patches())?;
        let weights = pass.weights(&rows, &hidden)?;
        Ok(weights.into_iter().map(|weights| Sequence { weights: Some(weights), ..Sequence::default() }).collect())
    }
}
