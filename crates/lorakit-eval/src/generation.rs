//! Text generation, greedy or sampled, until EOS, a stop string or a maximum length.

use lorakit_model::sampling::SamplingOptions;
use rayon::prelude::*;
use serde::Serialize;

use crate::continuous_batch::ContinuousBatch;
use crate::error::{EvalError, Result};
use crate::patched_model::PatchedModel;

/// How text is generated.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Maximum number of new tokens.
    pub max_new_tokens: usize,
    /// Strings before which the text ends.
    pub stop: Vec<String>,
    /// How each token is selected.
    pub sampling: SamplingOptions,
    /// The seed of sampling. What is drawn depends on the seed, the prompt's number, the text's number among those of its
    /// prompt, and the step: not on other prompts.
    pub seed: u64,
    /// The number of the first prompt.
    pub first_prompt: usize,
    /// The number of texts for each prompt.
    pub samples: usize,
    /// Maximum number of texts that grow at a time.
    pub max_rows: usize,
    /// Maximum tokens per forward: longer prompts are read in parts.
    pub batch_tokens: usize,
    /// Maximum memory for cached keys and values, in bytes, unless a single text needs more. Texts wait for room in it.
    pub cache_bytes: u64,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            max_new_tokens: 256,
            stop: Vec::new(),
            sampling: SamplingOptions::default(),
            seed: 0,
            first_prompt: 0,
            samples: 1,
            max_rows: 64,
            batch_tokens: 2048,
            cache_bytes: 1 << 30,
        }
    }
}

impl GenerateOptions {
    /// The most tokens that a prompt and its text have.
    pub(crate) fn capacity(&self, prompt: &[u32], model: &PatchedModel) -> usize {
        prompt.len().saturating_add(self.max_new_tokens).min(model.max_length())
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model generated EOS.
    Eos,
    /// The model generated a stop string, which is cut off.
    Stop,
    /// The maximum number of new tokens, or the base's context, is exhausted.
    Length,
}

/// An event of a row during generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationEvent<'t> {
    /// A piece of text is certain. The pieces of a row in order are its text.
    Text(&'t str),
    /// The row is finished, with this text.
    End(&'t GeneratedText),
}

/// The text that a model generated after a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GeneratedText {
    /// The text, without EOS and the stop string.
    pub text: String,
    /// The number of generated tokens, including EOS and a stop string.
    pub tokens: usize,
    /// Why it ended.
    pub finish: FinishReason,
}

/// Generates [`GenerateOptions::samples`] texts after each of `prompts`, in order: first those of the first prompt.
///
/// `on_event` receives every event with the index of its text. Rows are decoded together; those that are finished make room
/// for others, and what prompts have in common is read once. Which rows are decoded together changes a text only if two
/// tokens are equally likely up to rounding.
///
/// # Errors
/// If a prompt is empty or fills the base's context, or a logit is NaN; the error names the prompt.
pub fn generate(
    model: &PatchedModel,
    prompts: &[Vec<u32>],
    config: &GenerateOptions,
    on_event: &mut dyn FnMut(usize, GenerationEvent),
) -> Result<Vec<GeneratedText>> {
    check(prompts, config, model.max_length())?;
    let mut batches = batches(model, prompts, config)?;
    let mut texts = vec![None; prompts.len() * config.samples];
    while batches.iter().any(|batch| !batch.is_finished()) {
        let steps: Vec<Result<Vec<_>>> = match batches.as_mut_slice() {
            [one] => vec![one.step()],
            several => several.par_iter_mut().map(ContinuousBatch::step).collect(),
        };
        for row in steps.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            if !row.piece.is_empty() {
                on_event(row.index, GenerationEvent::Text(&row.piece));
            }
            if let Some(generated) = row.generated {
                on_event(row.index, GenerationEvent::End(&generated));
                texts[row.index] = Some(generated);
            }
        }
    }
    Ok(texts.into_iter().flatten().collect())
}

/// The rows that are decoded together: all, or over a small base those of each thread.
fn batches<'a>(
    model: &'a PatchedModel<'a>,
    prompts: &'a [Vec<u32>],
    config: &'a GenerateOptions,
) -> Result<Vec<ContinuousBatch<'a>>> {
    let threads = model.base.batch_parallel(config.batch_tokens).lanes();
    let (count, threads) = (prompts.len(), threads.clamp(1, prompts.len().max(1)));
    let own = |thread| thread * count / threads..(thread + 1) * count / threads;
    let cache_bytes = config.cache_bytes / threads as u64;
    (0..threads).map(|thread| ContinuousBatch::new(model, config, prompts, own(thread), cache_bytes)).collect()
}

/// Refuses prompts that cannot be continued.
fn check(prompts: &[Vec<u32>], config: &GenerateOptions, max_length: usize) -> Result<()> {
    if config.max_new_tokens == 0 {
        return Err(EvalError::NoNewTokens);
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let (prompt, tokens) = (config.first_prompt + i + 1, prompt.len());
        if tokens == 0 {
            return Err(EvalError::EmptyPrompt { prompt });
        }
        if tokens >= max_length {
            return Err(EvalError::LongPrompt { prompt, tokens, max_length });
        }
    }
    Ok(())
}
