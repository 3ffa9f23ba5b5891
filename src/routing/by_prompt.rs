//! Routers that decide by prompts, at work: the base reads each prompt once before anything is predicted.

use anyhow::Result;
use lorakit_eval::PromptRouting;
use lorakit_lora::{Row, Rows};
use lorakit_model::Base;
use std::sync::Arc;

/// Lets every row carry the weights that its prompt decides.
pub struct ByPrompt<'a> {
    /// The base.
    pub base: &'a Base,
    /// What decides.
    pub rule: Arc<dyn lorakit_route::ByPrompt>,
}

impl PromptRouting for ByPrompt<'_> {
    fn of(&self, prompts: &[&[u32]]) -> Result<Vec<Row>> {
        let survey = self.rule.survey();
        let rows = Rows::packed(prompts.iter().map(|prompt| prompt.len()));
        let hidden = self.base.hidden(&prompts.concat(), &self.base.plan(rows.clone()), &survey.patches())?;
        let weights = survey.weights(&rows, &hidden)?;
        Ok(weights.into_iter().map(|weights| Row { weights: Some(weights), ..Row::default() }).collect())
    }
}
