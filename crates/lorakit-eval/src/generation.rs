//! Text after prompts: greedy or drawn, token by token, until EOS, a stop text or a length.

use anyhow::{Result, ensure};
use candle_core::DType;
use lorakit_model::Decoding;
use lorakit_model::sample::{Choice, Sampler};
use serde::Serialize;

use crate::patched_model::PatchedModel;
use crate::stop_text::StopText;
use crate::token_batches::token_batches;

/// How text is generated.
#[derive(Clone, Debug)]
pub struct GenerationConfig {
    /// Where a text ends at the latest, in tokens.
    pub max_new_tokens: usize,
    /// Texts before which it ends.
    pub stop: Vec<String>,
    /// How each token is chosen.
    pub choice: Choice,
    /// Where drawn tokens come from. Each prompt has a stream of its own, keyed by seed and place.
    pub seed: u64,
    /// How many tokens are held at a time, prompts and texts together.
    pub batch_tokens: usize,
}

impl Default for GenerationConfig {
    fn default() -> Self {
        Self { max_new_tokens: 256, stop: Vec::new(), choice: Choice::Greedy, seed: 0, batch_tokens: 8192 }
    }
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model wrote EOS.
    Eos,
    /// The model wrote a stop text, which is cut off.
    Stop,
    /// The text, or the longest sequence that the base was made for, is full.
    Length,
}

/// Something that happened to a row while it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationEvent<'t> {
    /// A piece of text became certain. The pieces of a row, one behind the other, are its text.
    Text(&'t str),
    /// The row is finished.
    End(FinishReason),
}

/// What a model wrote after a prompt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GeneratedText {
    /// The text, without EOS and without the stop text that ended it.
    pub text: String,
    /// Number of tokens written, EOS and those of a stop text among them.
    pub tokens: usize,
    /// Why it ended.
    pub finish: FinishReason,
}

/// Goes on after each of `prompts`, tokens with at least one each. Results are in their order.
///
/// `hear` is told of every event, with the index of its prompt, as soon as it happens. Rows are decoded together and
/// leave when they are finished; which rows are decoded together changes a text only where two tokens are equally
/// likely up to rounding.
///
/// # Errors
/// Where a prompt is empty or fills the longest sequence that the base was made for.
pub fn generate(
    model: &PatchedModel,
    prompts: &[Vec<u32>],
    config: &GenerationConfig,
    hear: &mut dyn FnMut(usize, GenerationEvent),
) -> Result<Vec<GeneratedText>> {
    check(prompts, config, model.max_length())?;
    let room = |prompt: &Vec<u32>| (prompt.len() + config.max_new_tokens).min(model.max_length());
    let rooms: Vec<usize> = prompts.iter().map(room).collect();
    let mut generated = vec![None; prompts.len()];
    for group in token_batches(&rooms, config.batch_tokens) {
        let mut decoding = Decoding::new(model.base, model.patches, group.iter().map(|&i| rooms[i]).sum())?;
        let read: Vec<&[u32]> = group.iter().map(|&index| prompts[index].as_slice()).collect();
        let mut writers = Vec::new();
        for (&index, template) in group.iter().zip(model.routing(&read)?) {
            let row = decoding.open(rooms[index], template)?;
            let limit = rooms[index] - prompts[index].len();
            writers.push(Writer::new(model, config, Place { index, row, limit }, &prompts[index]));
        }
        while !writers.is_empty() {
            step(&mut decoding, &mut writers, hear)?;
            for writer in writers.extract_if(.., |writer| writer.finish.is_some()) {
                let index = writer.place.index;
                generated[index] = writer.into_generated();
            }
        }
    }
    Ok(generated.into_iter().flatten().collect())
}

/// Refuses what cannot be gone on from.
fn check(prompts: &[Vec<u32>], config: &GenerationConfig, longest: usize) -> Result<()> {
    ensure!(config.max_new_tokens > 0, "max_new_tokens is 0, expected at least 1");
    for (i, prompt) in prompts.iter().enumerate() {
        let (number, tokens) = (i + 1, prompt.len());
        ensure!(tokens > 0, "prompt {number} has no token to go on from; begin it with the tokenizer's BOS or EOS");
        ensure!(
            tokens < longest,
            "prompt {number} has {tokens} tokens, and the base was made for {longest} with what it writes; shorten it"
        );
    }
    Ok(())
}

/// Feeds what each writer has not yet read, lets it choose a token, and gives out what became certain.
fn step(decoding: &mut Decoding, writers: &mut [Writer], hear: &mut dyn FnMut(usize, GenerationEvent)) -> Result<()> {
    let fed: Vec<(usize, &[u32])> = writers.iter().map(|writer| (writer.place.row, writer.unread.as_slice())).collect();
    let logits = decoding.next_logits(&fed)?.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    for (writer, logits) in writers.iter_mut().zip(&logits) {
        writer.choose(logits)?;
        let fresh = writer.text.fresh();
        if !fresh.is_empty() {
            hear(writer.place.index, GenerationEvent::Text(fresh));
        }
        if let Some(finish) = writer.finish {
            hear(writer.place.index, GenerationEvent::End(finish));
        }
    }
    Ok(())
}

/// Where a row stands, and how far it may go.
struct Place {
    /// Its prompt's, among those given.
    index: usize,
    /// Its row, among those decoded together.
    row: usize,
    /// How many tokens it may write; at least 1.
    limit: usize,
}

/// A row that is being written.
struct Writer<'a> {
    place: Place,
    unread: Vec<u32>,
    stop_tokens: &'a [u32],
    sampler: Sampler,
    text: StopText<'a>,
    written: usize,
    finish: Option<FinishReason>,
}

impl<'a> Writer<'a> {
    fn new(model: &PatchedModel<'a>, config: &'a GenerationConfig, place: Place, prompt: &[u32]) -> Self {
        Writer {
            unread: prompt.to_vec(),
            stop_tokens: model.vocabulary.stop_tokens(),
            sampler: Sampler::new(config.choice, stream_of(config.seed, place.index)),
            text: StopText::new(model.vocabulary, prompt, &config.stop),
            written: 0,
            finish: None,
            place,
        }
    }

    /// Takes the token that follows, and sees whether the text has ended.
    fn choose(&mut self, logits: &[f32]) -> Result<()> {
        let token = self.sampler.next(logits);
        self.unread = vec![token];
        self.written += 1;
        self.finish = if self.stop_tokens.contains(&token) {
            Some(FinishReason::Eos)
        } else if self.text.push(token)? {
            Some(FinishReason::Stop)
        } else {
            (self.written == self.place.limit).then_some(FinishReason::Length)
        };
        match self.finish {
            Some(_) => self.text.finish(),
            None => Ok(()),
        }
    }

    fn into_generated(self) -> Option<GeneratedText> {
        Some(GeneratedText { text: self.text.into_text(), tokens: self.written, finish: self.finish? })
    }
}

/// The seed of one prompt's stream: seed and place through the finaliser of SplitMix64, so that neighbours among
/// seeds and places share nothing.
fn stream_of(seed: u64, index: usize) -> u64 {
    let mut z = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
