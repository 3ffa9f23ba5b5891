//! A row whose text grows token by token.

use lorakit_format::rng::Key;
use lorakit_lora::Sequence;
use lorakit_model::sampling::Sampler;

use crate::error::{EvalError, Result};
use crate::generate_options::GenerateOptions;
use crate::generated_text::{FinishReason, GeneratedText};
use crate::patched_model::PatchedModel;
use crate::stop_text::StopText;

/// The tokens of a row, whose keys a decoder holds.
pub(crate) struct CachedRow {
    /// Its sequence in the decoder.
    pub sequence: usize,
    /// The tokens of prompt and text.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt's.
    pub prompt: usize,
    /// How many of the prompt's an encoder reads, the first ones; zero where none does.
    pub source: usize,
    /// What it carries for patches to read.
    pub template: Sequence,
}

impl CachedRow {
    /// How many tokens of `prompt` this row's prompt begins with, if its keys are those of a row that carries `template`. The
    /// last two of `prompt` do not count: tokens after a prompt, and a single last one of it, may be computed in another
    /// precision. Of the first `source` tokens, which an encoder reads, it is all or none: each depends on all of them.
    pub fn shared_with(&self, (prompt, source): (&[u32], usize), template: &Sequence) -> usize {
        if self.template.expert != template.expert || self.template.weights != template.weights {
            return 0;
        }
        if self.source > 0 || source > 0 {
            return if self.tokens[..self.source] == prompt[..source] { source } else { 0 };
        }
        self.tokens[..self.prompt]
            .iter()
            .zip(&prompt[..prompt.len().saturating_sub(2)])
            .take_while(|(a, b)| a == b)
            .count()
    }
}

/// A row that is being generated.
pub(crate) struct GrowingRow<'a> {
    /// The index of its text.
    pub index: usize,
    pub cached: CachedRow,
    /// The number of its prompt, from one.
    prompt: usize,
    /// Maximum number of new tokens; at least 1.
    limit: usize,
    stop_tokens: &'a [u32],
    sampler: Sampler,
    text: StopText<'a>,
    new_tokens: usize,
    finish: Option<FinishReason>,
    failure: Option<EvalError>,
}

impl<'a> GrowingRow<'a> {
    /// The row of the text `index`, with at most `limit` new tokens. `cached` holds its prompt.
    pub fn new(
        model: &PatchedModel<'a>,
        config: &'a GenerateOptions,
        index: usize,
        cached: CachedRow,
        limit: usize,
    ) -> Result<Self> {
        let (prompt, sample) = (config.first_prompt + index / config.samples, index % config.samples);
        let key = Key::new(config.seed, "sampling").number(prompt as u64).number(sample as u64);
        Ok(Self {
            index,
            prompt: prompt + 1,
            limit,
            stop_tokens: model.tokenizer.stop_tokens(),
            sampler: Sampler::new(config.sampling, key),
            text: StopText::new(model.tokenizer, &cached.tokens, &config.stop)?,
            new_tokens: 0,
            finish: None,
            failure: None,
            cached,
        })
    }

    /// Selects the next token by its `logits`, and checks whether the text has ended. Returns what is certain of the text.
    /// If that fails, because a logit is NaN, the row ends; the other rows can still be finished.
    pub fn grow(&mut self, logits: &[f32]) -> String {
        match self.choose(logits) {
            Ok(()) => self.text.take_stable(),
            Err(source) => {
                self.failure = Some(EvalError::Prompt { prompt: self.prompt, source: Box::new(source) });
                String::new()
            }
        }
    }

    fn choose(&mut self, logits: &[f32]) -> Result<()> {
        // A repetition penalty is not about what an encoder reads.
        let token = self.sampler.next(logits, &self.cached.tokens[self.cached.source..], self.new_tokens)?;
        self.cached.tokens.push(token);
        self.new_tokens += 1;
        self.finish = if self.stop_tokens.contains(&token) {
            Some(FinishReason::Eos)
        } else if self.text.push(token)? {
            Some(FinishReason::Stop)
        } else {
            (self.new_tokens == self.limit).then_some(FinishReason::Length)
        };
        match self.finish {
            Some(_) => self.text.finish(),
            None => Ok(()),
        }
    }

    /// Whether its text has ended, or could not be continued.
    pub fn has_ended(&self) -> bool {
        self.finish.is_some() || self.failure.is_some()
    }

    /// Its text or why it failed, if it has ended, and its tokens.
    pub fn into_parts(self) -> (Option<Result<GeneratedText>>, CachedRow) {
        let text = |finish| GeneratedText { text: self.text.into_text(), tokens: self.new_tokens, finish };
        (self.failure.map(Err).or(self.finish.map(text).map(Ok)), self.cached)
    }
}
