//! Rows that do not fit in the base's context, or whose answers are longer than what is generated.

use crate::token_budget::TokenBudget;
use lorakit_task::Example;

/// How many of a task's rows do not fit in the base's context, or in what is generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TruncatedRows {
    /// Rows whose likelihoods were computed without the beginning of the prompt.
    pub prompts: usize,
    /// Rows whose loss was computed without the end of the answer.
    pub answers: usize,
    /// Rows whose text was generated without the beginning of the prompt.
    pub generation_prompts: usize,
    /// Rows after whose prompt there was room for fewer new tokens than the task asks for.
    pub new_tokens: usize,
    /// Rows all of whose accepted answers have more tokens than the task lets a model generate; none where an `extract` takes
    /// a part of a text as its answer.
    pub long_answers: usize,
}

impl TruncatedRows {
    /// Counts a row whose answers were encoded as `examples`.
    pub(crate) fn count_examples(&mut self, examples: &[Example]) {
        self.prompts +=
            usize::from(examples.iter().any(|example| example.truncation.prompt + example.truncation.messages > 0));
        self.answers += usize::from(examples.iter().any(|example| example.truncation.target > 0));
    }

    /// Counts a row whose prompt has `prompt` tokens where `max_new_tokens` are asked for.
    pub fn count_generation(&mut self, budget: TokenBudget, prompt: usize, max_new_tokens: usize) {
        let cut = budget.prompt < prompt;
        self.generation_prompts += usize::from(cut);
        self.new_tokens += usize::from(!cut && budget.new_tokens < max_new_tokens);
    }
}
