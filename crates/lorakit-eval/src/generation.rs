//! Text generation, greedy or sampled, until EOS, a stop string or a maximum length.

use rayon::prelude::*;

use crate::continuous_batch::ContinuousBatch;
use crate::error::{EvalError, Result};
use crate::generate_options::GenerateOptions;
use crate::generated_text::GeneratedText;
use crate::patched_model::PatchedModel;

/// An event of a row during generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationEvent<'t> {
    /// A piece of text is certain. The pieces of a row in order are its text.
    Text(&'t str),
    /// The row is finished, with this text.
    End(&'t GeneratedText),
}

/// Generates [`GenerateOptions::samples`] texts after each of `prompts`, in order: first those of the first prompt.
///
/// `on_event` receives every event with the index of its text. Rows are decoded together; those that are finished make room
/// for others, and what prompts have in common is read once. Which rows are decoded together changes a text only if two
/// tokens are equally likely up to rounding.
///
/// # Errors
/// If a prompt is empty or fills the base's context, before any event. If a logit is NaN, after the texts of all other
/// prompts have ended. The error names the first such prompt.
pub fn generate(
    model: &PatchedModel,
    prompts: &[Vec<u32>],
    config: &GenerateOptions,
    on_event: &mut dyn FnMut(usize, GenerationEvent),
) -> Result<Vec<GeneratedText>> {
    check(prompts, config, model.max_length())?;
    let mut batches = batches(model, prompts, config)?;
    let mut texts: Vec<_> = (0..prompts.len() * config.samples).map(|_| None).collect();
    while batches.iter().any(|batch| !batch.is_finished()) {
        let steps: Vec<Result<Vec<_>>> = match batches.as_mut_slice() {
            [one] => vec![one.step()],
            several => several.par_iter_mut().map(ContinuousBatch::step).collect(),
        };
        for row in steps.into_iter().collect::<Result<Vec<_>>>()?.into_iter().flatten() {
            if !row.piece.is_empty() {
                on_event(row.index, GenerationEvent::Text(&row.piece));
            }
            if let Some(Ok(generated)) = &row.generated {
                on_event(row.index, GenerationEvent::End(generated));
            }
            texts[row.index] = row.generated.or(texts[row.index].take());
        }
    }
    texts.into_iter().flatten().collect()
}

/// The rows that are decoded together: all, or over a small base those of each thread.
fn batches<'a>(
    model: &'a PatchedModel<'a>,
    prompts: &'a [Vec<u32>],
    config: &'a GenerateOptions,
) -> Result<Vec<ContinuousBatch<'a>>> {
    let threads = model.base.batch_parallel(config.batch_tokens).workers();
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
