//! Text generation, greedy or sampled, until EOS, a stop string or a maximum length.

use candle_core::DType;
use lorakit_format::rng::Key;
use lorakit_model::CachedDecoder;
use lorakit_model::sampling::{Sampler, SamplingOptions};
use serde::Serialize;

use crate::error::{EvalError, Result};
use crate::patched_model::PatchedModel;
use crate::stop_text::StopText;
use crate::token_batches::token_batches;

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
    /// Maximum tokens in the cache, prompts and generated text together.
    pub batch_tokens: usize,
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
            batch_tokens: 8192,
        }
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
    /// The row is finished.
    End(FinishReason),
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
/// `on_event` receives every event with the index of its text. Rows are decoded together and leave the batch when they
/// are finished; which rows share a batch changes a text only if two tokens are equally likely up to rounding.
///
/// # Errors
/// If a prompt is empty or fills the base's context, or a logit is NaN.
pub fn generate(
    model: &PatchedModel,
    prompts: &[Vec<u32>],
    config: &GenerateOptions,
    on_event: &mut dyn FnMut(usize, GenerationEvent),
) -> Result<Vec<GeneratedText>> {
    check(prompts, config, model.max_length())?;
    let texts_of = |prompt| std::iter::repeat_n(prompt, config.samples);
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).flat_map(texts_of).collect();
    let capacity = |prompt: &&[u32]| (prompt.len() + config.max_new_tokens).min(model.max_length());
    let capacities: Vec<usize> = prompts.iter().map(capacity).collect();
    let mut texts = vec![None; prompts.len()];
    for batch in token_batches(&capacities, config.batch_tokens) {
        let mut decoder = CachedDecoder::new(model.base, model.patches, batch.iter().map(|&i| capacities[i]).sum())?;
        let batch_prompts: Vec<&[u32]> = batch.iter().map(|&index| prompts[index]).collect();
        let mut rows = Vec::new();
        for (&index, template) in batch.iter().zip(model.route(&batch_prompts)?) {
            let row = decoder.open(capacities[index], template)?;
            let limit = capacities[index] - prompts[index].len();
            let prompt = config.first_prompt + index / config.samples;
            let place = RowPlace { index, prompt, sample: index % config.samples, decoder_row: row, limit };
            rows.push(GeneratedRow::new(model, config, place, prompts[index])?);
        }
        while !rows.is_empty() {
            step(&mut decoder, &mut rows, on_event)?;
            for row in rows.extract_if(.., |row| row.finish.is_some()) {
                let index = row.place.index;
                texts[index] = row.into_generated();
            }
        }
    }
    Ok(texts.into_iter().flatten().collect())
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

/// Feeds the unread tokens of each row, selects the next token, and emits the text that is certain.
fn step(
    decoder: &mut CachedDecoder,
    rows: &mut [GeneratedRow],
    on_event: &mut dyn FnMut(usize, GenerationEvent),
) -> Result<()> {
    let fed: Vec<(usize, &[u32])> = rows.iter().map(|row| (row.place.decoder_row, row.unread())).collect();
    let logits = decoder.next_logits(&fed)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    for (row, logits) in rows.iter_mut().zip(&logits) {
        row.choose(logits)
            .map_err(|source| EvalError::Prompt { prompt: row.place.prompt + 1, source: Box::new(source) })?;
        let piece = row.text.take_certain();
        if !piece.is_empty() {
            on_event(row.place.index, GenerationEvent::Text(&piece));
        }
        if let Some(finish) = row.finish {
            on_event(row.place.index, GenerationEvent::End(finish));
        }
    }
    Ok(())
}

/// Where a row is, and its limit.
struct RowPlace {
    /// The index of its text.
    index: usize,
    /// The number of its prompt, from zero.
    prompt: usize,
    /// Its number among the texts of its prompt, from zero.
    sample: usize,
    /// Its row in the decoder.
    decoder_row: usize,
    /// Maximum number of new tokens; at least 1.
    limit: usize,
}

/// A row in generation.
struct GeneratedRow<'a> {
    place: RowPlace,
    /// The tokens of prompt and text.
    tokens: Vec<u32>,
    /// How many of them the decoder has read.
    read: usize,
    stop_tokens: &'a [u32],
    sampler: Sampler,
    text: StopText<'a>,
    new_tokens: usize,
    finish: Option<FinishReason>,
}

impl<'a> GeneratedRow<'a> {
    fn new(model: &PatchedModel<'a>, config: &'a GenerateOptions, place: RowPlace, prompt: &[u32]) -> Result<Self> {
        let key = Key::new(config.seed, "sampling").number(place.prompt as u64).number(place.sample as u64);
        Ok(GeneratedRow {
            tokens: prompt.to_vec(),
            read: 0,
            stop_tokens: model.tokenizer.stop_tokens(),
            sampler: Sampler::new(config.sampling, key),
            text: StopText::new(model.tokenizer, prompt, &config.stop)?,
            new_tokens: 0,
            finish: None,
            place,
        })
    }

    fn unread(&self) -> &[u32] {
        &self.tokens[self.read..]
    }

    /// Selects the next token, and checks whether the text has ended.
    fn choose(&mut self, logits: &[f32]) -> Result<()> {
        let token = self.sampler.next(logits, &self.tokens, self.new_tokens)?;
        self.read = self.tokens.len();
        self.tokens.push(token);
        self.new_tokens += 1;
        self.finish = if self.stop_tokens.contains(&token) {
            Some(FinishReason::Eos)
        } else if self.text.push(token)? {
            Some(FinishReason::Stop)
        } else {
            (self.new_tokens == self.place.limit).then_some(FinishReason::Length)
        };
        match self.finish {
            Some(_) => self.text.finish(),
            None => Ok(()),
        }
    }

    fn into_generated(self) -> Option<GeneratedText> {
        Some(GeneratedText { text: self.text.into_text(), tokens: self.new_tokens, finish: self.finish? })
    }
}
