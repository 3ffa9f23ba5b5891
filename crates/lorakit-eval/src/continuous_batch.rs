//! Rows that are generated together: those that end make room for others (continuous batching, as in Orca, OSDI 2022).
//!
//! A row's slots in the cache are reserved for its whole length, so that none is ever interrupted. A row that begins with the
//! tokens of another one shares its slots, where both carry the same for patches: few-shot examples, system messages and the
//! prompt of several samples are read once. Of an encoder's source, which is shared as a whole or not at all, that is one run
//! of the encoder. Long prompts are read in parts, unless an encoder reads them.

use std::collections::VecDeque;
use std::ops::Range;

use candle_core::{Device, Tensor};
use lorakit_lora::Sequence;
use lorakit_lora::kernels::cpu_tensor;
use lorakit_model::{CachedDecoder, TokenPrecision};
use rayon::prelude::*;

use crate::error::Result;
use crate::generate_options::GenerateOptions;
use crate::generated_text::GeneratedText;
use crate::growing_row::{CachedRow, GrowingRow};
use crate::patched_model::PatchedModel;

/// Minimum shared prefix worth waiting for, in tokens.
const MIN_SHARED_TOKENS: usize = 16;

/// The fewest tokens of a forward.
const MIN_FORWARD_TOKENS: usize = 4;

/// What a step did to a row.
pub(crate) struct RowStep {
    /// The index of its text.
    pub index: usize,
    /// The piece of its text that is certain now.
    pub piece: String,
    /// Its text, or why there is none, if it has ended.
    pub generated: Option<Result<GeneratedText>>,
}

/// A row that has not begun.
struct WaitingRow {
    /// The index of its text.
    index: usize,
    template: Sequence,
}

/// How a row begins.
enum Beginning {
    /// It has slots of its own for all of its tokens.
    Alone,
    /// It shares the first tokens of a sequence.
    Sharing { sequence: usize, tokens: usize },
    /// It waits until another row has read tokens that both begin with.
    WaitsForTokens,
    /// It waits for slots.
    WaitsForSlots,
}

/// Rows that share a cache, and those that wait for room in it.
pub(crate) struct ContinuousBatch<'a> {
    model: &'a PatchedModel<'a>,
    config: &'a GenerateOptions,
    prompts: &'a [Vec<u32>],
    /// Prompts whose rows do not yet wait: it is not known what they carry.
    unrouted: Range<usize>,
    waiting: VecDeque<WaitingRow>,
    rows: Vec<GrowingRow<'a>>,
    /// Rows that have ended, the oldest first. They stay in the cache for others to share until their slots are needed.
    ended: VecDeque<CachedRow>,
    decoder: CachedDecoder<'a>,
    /// Whether rows may share slots.
    shares: bool,
}

impl<'a> ContinuousBatch<'a> {
    /// The rows of some of `prompts`, with a cache of at most `cache_bytes`, unless a single row needs more.
    pub fn new(
        model: &'a PatchedModel<'a>,
        config: &'a GenerateOptions,
        prompts: &'a [Vec<u32>],
        own: Range<usize>,
        cache_bytes: u64,
    ) -> Result<Self> {
        let mut capacities: Vec<usize> = prompts[own.clone()].iter().map(|p| config.capacity(p, model)).collect();
        capacities.sort_unstable_by(|a, b| b.cmp(a));
        let longest = capacities.first().copied().unwrap_or(0);
        let texts = capacities.iter().flat_map(|&capacity| std::iter::repeat_n(capacity, config.samples));
        let wanted: usize = texts.take(config.max_rows.max(1)).sum();
        let affordable = cache_bytes / model.base.cache_bytes_per_token().max(1);
        // One more than grow at a time: a row that has ended can be shared.
        let slots = (wanted + longest).min(usize::try_from(affordable).unwrap_or(usize::MAX)).max(longest);
        let decoder = CachedDecoder::new(model.base, model.patches, slots)?;
        Ok(Self {
            model,
            config,
            prompts,
            unrouted: own,
            waiting: VecDeque::new(),
            rows: Vec::new(),
            ended: VecDeque::new(),
            shares: decoder.can_share(longest) || decoder.can_share_source(longest),
            decoder,
        })
    }

    /// Whether all rows have ended.
    pub fn is_finished(&self) -> bool {
        self.rows.is_empty() && self.waiting.is_empty() && self.unrouted.is_empty()
    }

    /// Begins rows that there is room for, reads unread tokens, and appends a token to each row that has read all of its own.
    pub fn step(&mut self) -> Result<Vec<RowStep>> {
        self.begin_rows()?;
        let is_decoded = |row: &usize| unread(&self.rows[*row], &self.decoder).1.len() == 1;
        let (decoded, prompts): (Vec<usize>, Vec<usize>) = (0..self.rows.len()).partition(is_decoded);
        let prompts = self.fitting(prompts)?;
        // Apart: over quantized weights, tokens of prompts and those after them are computed in different precisions.
        let mut steps = self.grow_rows(&decoded)?;
        steps.extend(self.grow_rows(&prompts)?);
        let ended: Vec<GrowingRow> = self.rows.extract_if(.., |row| row.has_ended()).collect();
        for row in ended {
            let index = row.index;
            let (generated, cached) = row.into_parts();
            if let Some(step) = steps.iter_mut().find(|step| step.index == index) {
                step.generated = generated;
            }
            self.ended.push_back(cached);
        }
        Ok(steps)
    }

    /// The first of `prompts` that fit into a forward. If not even one does, a part of it is read, or all of it where the base
    /// reads a prompt at once.
    fn fitting(&mut self, mut prompts: Vec<usize>) -> Result<Vec<usize>> {
        let most = self.config.batch_tokens.max(MIN_FORWARD_TOKENS);
        let (mut tokens, mut count) = (0, 0);
        for &row in &prompts {
            let (sequence, unread) = unread(&self.rows[row], &self.decoder);
            tokens += unread.len();
            if tokens <= most {
                count += 1;
                continue;
            }
            if count == 0 && !self.decoder.can_read_in_parts() {
                count = 1;
            } else if count == 0 {
                // A single token must not be left: it would be decoded, as one after the prompt.
                let part = most - usize::from(most + 1 == unread.len());
                self.decoder.forward(&[(sequence, &unread[..part])], TokenPrecision::Exact)?;
            }
            break;
        }
        prompts.truncate(count);
        Ok(prompts)
    }

    /// Reads the unread tokens of some rows, ascending, and appends a token to each.
    fn grow_rows(&mut self, rows: &[usize]) -> Result<Vec<RowStep>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let fed: Vec<(usize, &[u32])> = rows.iter().map(|&row| unread(&self.rows[row], &self.decoder)).collect();
        let logits = self.decoder.next_logits(&fed)?;
        let mut next = rows.iter().peekable();
        let all = self.rows.iter_mut().enumerate();
        let mut grown: Vec<&mut GrowingRow> =
            all.filter_map(|(at, row)| next.next_if(|&&next| next == at).map(|_| row)).collect();
        let pieces = grow(&mut grown, &logits)?;
        let step = |(row, piece): (&&mut GrowingRow, String)| RowStep { index: row.index, piece, generated: None };
        Ok(grown.iter().zip(pieces).map(step).collect())
    }

    /// Begins the rows that there is room for, in order, but for those that wait for a prefix.
    fn begin_rows(&mut self) -> Result<()> {
        let mut at = 0;
        while self.rows.len() < self.config.max_rows.max(1) && self.route_until(at)? {
            match self.beginning(&self.waiting[at]) {
                Beginning::WaitsForTokens => at += 1,
                Beginning::WaitsForSlots if self.free_slots() => {}
                Beginning::WaitsForSlots => break,
                beginning => self.begin(at, &beginning)?,
            }
            // Of more rows than can begin, no more wait for a prefix.
            if at >= self.config.max_rows {
                break;
            }
        }
        Ok(())
    }

    /// Lets prompts wait until there is a waiting row `at`; false if there are no more.
    fn route_until(&mut self, at: usize) -> Result<bool> {
        while at >= self.waiting.len() && !self.unrouted.is_empty() {
            let (start, mut tokens) = (self.unrouted.start, 0);
            let fits = |prompt: &&Vec<u32>| {
                tokens += prompt.len();
                tokens <= self.config.batch_tokens
            };
            let count = self.prompts[self.unrouted.clone()].iter().take_while(fits).count().max(1);
            let prompts: Vec<&[u32]> = self.prompts[start..start + count].iter().map(Vec::as_slice).collect();
            for (prompt, template) in (start..).zip(self.model.route(&prompts)?) {
                let rows = (0..self.config.samples).map(|sample| WaitingRow {
                    index: prompt * self.config.samples + sample,
                    template: template.clone(),
                });
                self.waiting.extend(rows);
            }
            self.unrouted.start += count;
        }
        Ok(at < self.waiting.len())
    }

    fn prompt(&self, row: &WaitingRow) -> &'a [u32] {
        &self.prompts[row.index / self.config.samples]
    }

    /// How many tokens of a prompt an encoder reads.
    fn source_len(&self, prompt: &[u32]) -> usize {
        self.model.tokenizer.layout().source_len(prompt.len())
    }

    fn beginning(&self, row: &WaitingRow) -> Beginning {
        let prompt = self.prompt(row);
        let source = self.source_len(prompt);
        // An encoder is not run again for the shortest source.
        let least = if source > 0 { 1 } else { MIN_SHARED_TOKENS };
        let capacity = self.config.capacity(prompt, self.model);
        // The longest prefix in the cache, and the longest that is or will be there.
        let (mut read, mut shared, mut sequence) = (0, 0, None);
        let cached = self.rows.iter().map(|row| &row.cached).chain(&self.ended);
        for other in cached.filter(|_| self.shares) {
            let common = other.shared_with((prompt, source), &row.template);
            let common_read = common.min(self.decoder.tokens_in(other.sequence));
            if common_read > read {
                (read, sequence) = (common_read, Some(other.sequence));
            }
            shared = shared.max(common);
        }
        if shared >= read + least {
            return Beginning::WaitsForTokens;
        }
        match sequence {
            Some(sequence) if read >= least && capacity - read <= self.decoder.free_slots() => {
                Beginning::Sharing { sequence, tokens: read }
            }
            _ if capacity <= self.decoder.free_slots() => Beginning::Alone,
            _ => Beginning::WaitsForSlots,
        }
    }

    /// Removes the row that ended first from the cache; false if there is none.
    fn free_slots(&mut self) -> bool {
        let oldest = self.ended.pop_front();
        oldest.map(|row| self.decoder.close(row.sequence)).is_some()
    }

    /// Begins the waiting row `at`.
    fn begin(&mut self, at: usize, beginning: &Beginning) -> Result<()> {
        let Some(WaitingRow { index, template }) = self.waiting.remove(at) else { return Ok(()) };
        let prompt = &self.prompts[index / self.config.samples];
        let (capacity, source) = (self.config.capacity(prompt, self.model), self.source_len(prompt));
        // The tokenizer knows what a target starts with; generation_config.json may change it.
        let read = Sequence { source: (source > 0).then_some(source), ..template.clone() };
        let sequence = match *beginning {
            Beginning::Sharing { sequence, tokens } => self.decoder.branch_at(sequence, tokens, capacity - tokens)?,
            _ => self.decoder.open(capacity, read)?,
        };
        // A prompt that is read in parts is rotated as a whole.
        self.decoder.declare_length(sequence, prompt.len());
        let cached = CachedRow { sequence, tokens: prompt.clone(), prompt: prompt.len(), source, template };
        self.rows.push(GrowingRow::new(self.model, self.config, index, cached, capacity - prompt.len())?);
        Ok(())
    }
}

/// A row's sequence, and its tokens that the decoder has not read.
fn unread<'r>(row: &'r GrowingRow, decoder: &CachedDecoder) -> (usize, &'r [u32]) {
    let CachedRow { sequence, tokens, .. } = &row.cached;
    (*sequence, &tokens[decoder.tokens_in(*sequence)..])
}

/// Appends a token to each row by its logits, and returns what is certain of their texts.
fn grow(rows: &mut [&mut GrowingRow], logits: &Tensor) -> Result<Vec<String>> {
    let vocabulary = logits.dim(1)?;
    let logits = logits.to_device(&Device::Cpu)?.contiguous()?;
    let pieces = cpu_tensor::with_values(&logits, "sampling", |logits| {
        rows.par_iter_mut().zip(logits.par_chunks_exact(vocabulary)).map(|(row, logits)| row.grow(logits)).collect()
    })?;
    Ok(pieces)
}
