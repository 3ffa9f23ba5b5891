//! Decoding with cached keys and values: sequences that grow token by token, and sequences that share a prefix.
//!
//! Some bases rotate all tokens of a row by its length. There, a sequence that has become longer than what its cached keys
//! were rotated for is computed again from its first token.
//!
//! Of an encoder-decoder, the first tokens appended to a sequence are its whole source, with the decoder's start token or
//! without. The encoder runs then, and what the decoder's attention to it reads is cached in the slots of the source.

use crate::awake_threads::with_awake_threads;
use crate::base::Base;
use crate::cache_slots::{CacheSlots, first};
use crate::kv_cache::KvCache;
use crate::layer::lm_head::HeadPatch;
use crate::weights::token_precision::TokenPrecision;
use candle_core::{Result, Tensor, bail};
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use std::collections::HashSet;
use std::ops::Range;

/// Sequences whose keys and values are cached, so that only new tokens are computed.
pub struct CachedDecoder<'a> {
    base: &'a Base,
    patches: &'a Patches,
    cache: KvCache,
    slots: CacheSlots,
    sequences: Vec<CachedSequence>,
    /// Indices of sequences that were closed.
    closed: Vec<usize>,
}

/// One sequence.
#[derive(Clone, Default)]
struct CachedSequence {
    /// The slots of its tokens in order, then those for tokens to come. Other sequences may share the first of them.
    slots: Vec<Range<usize>>,
    /// All of its tokens.
    ids: Vec<u32>,
    /// Number of its tokens that an encoder reads, the first ones; zero in a base without an encoder.
    source: usize,
    /// The row length that its cached keys were rotated for; none where it has no keys, or a failed call has changed some.
    rotated_for: Option<usize>,
    /// What a router reads: the sequence's expert or its weights.
    template: Sequence,
}

impl CachedSequence {
    /// The slots of its tokens.
    fn keys(&self) -> Vec<Range<usize>> {
        first(&self.slots, self.ids.len())
    }

    fn capacity(&self) -> usize {
        self.slots.iter().map(Range::len).sum()
    }
}

/// What a sequence was before a call: what is taken back if the call fails.
struct SequenceState {
    index: usize,
    tokens: usize,
    source: usize,
    rotated_for: Option<usize>,
}

/// How many of the first tokens of a sequence an encoder reads: as many as it says, or all but the decoder's start token.
fn source_len(base: &Base, sequence: &CachedSequence, tokens: &[u32]) -> usize {
    base.config().decoder_start().map_or(0, |start| {
        let prompt = tokens.len() - usize::from(tokens.last() == Some(&start));
        sequence.template.source.unwrap_or(prompt).min(tokens.len())
    })
}

impl<'a> CachedDecoder<'a> {
    /// A cache of `slots` tokens for all sequences together.
    pub fn new(base: &'a Base, patches: &'a Patches, slots: usize) -> Result<Self> {
        let cache = base.kv_cache(slots)?;
        Ok(Self { base, patches, cache, slots: CacheSlots::new(slots), sequences: Vec::new(), closed: Vec::new() })
    }

    /// A new, empty sequence with room for `capacity` tokens; returns its index. `template` carries what routers read:
    /// the sequence's expert or its weights.
    ///
    /// # Errors
    /// If fewer slots are left.
    pub fn open(&mut self, capacity: usize, template: Sequence) -> Result<usize> {
        let slots = self.take_slots(capacity)?;
        Ok(self.add(CachedSequence { slots, template, ..CachedSequence::default() }))
    }

    /// A new sequence that continues `sequence` from where it is now, and shares its tokens.
    ///
    /// # Errors
    /// If fewer than `capacity` slots are left.
    pub fn branch(&mut self, sequence: usize, capacity: usize) -> Result<usize> {
        self.branch_at(sequence, self.tokens_in(sequence), capacity)
    }

    /// A new sequence that shares the first `tokens` tokens of `sequence`, with room for `capacity` more.
    ///
    /// # Errors
    /// If `sequence` has fewer tokens, or fewer than `capacity` slots are left.
    pub fn branch_at(&mut self, sequence: usize, tokens: usize, capacity: usize) -> Result<usize> {
        let found = self.tokens_in(sequence);
        if tokens > found {
            bail!("{tokens} tokens of sequence {sequence} were to be shared, which has {found}");
        }
        if (1..self.sequences[sequence].source).contains(&tokens) {
            bail!("{tokens} tokens of sequence {sequence} were to be shared, whose source can be shared as a whole");
        }
        let own = self.take_slots(capacity)?;
        let parent = &self.sequences[sequence];
        let mut slots = first(&parent.slots, tokens);
        let branch = CachedSequence { ids: parent.ids[..tokens].to_vec(), ..parent.clone() };
        self.slots.share(&slots);
        slots.extend(own);
        Ok(self.add(CachedSequence { slots, ..branch }))
    }

    fn add(&mut self, sequence: CachedSequence) -> usize {
        let index = self.closed.pop().unwrap_or(self.sequences.len());
        if index == self.sequences.len() {
            self.sequences.push(sequence);
        } else {
            self.sequences[index] = sequence;
        }
        index
    }

    /// Ends a sequence: its slots are free, unless another sequence shares them, and its index may be used again.
    pub fn close(&mut self, sequence: usize) {
        self.slots.release(&std::mem::take(&mut self.sequences[sequence]).slots);
        self.closed.push(sequence);
    }

    /// Whether sequences of up to `tokens` tokens can always share a prefix: some bases rotate the keys of long ones
    /// differently, and a token that an encoder reads depends on those after it.
    pub fn can_share(&self, tokens: usize) -> bool {
        self.base.config().encoder.is_none() && self.base.rotates_alike(1, tokens)
    }

    /// Whether sequences of up to `tokens` tokens that an encoder reads the same of can always share all of these.
    pub fn can_share_source(&self, tokens: usize) -> bool {
        self.base.config().encoder.is_some() && self.base.rotates_alike(1, tokens)
    }

    /// Whether a prompt may be appended in parts: an encoder reads it at once.
    pub fn can_read_in_parts(&self) -> bool {
        self.base.config().encoder.is_none()
    }

    /// Number of slots that no sequence uses.
    pub fn free_slots(&self) -> usize {
        self.slots.free()
    }

    /// Declares the number of tokens to be read before decoding starts: the prompt's, which may be appended in parts. Until
    /// then tokens are exact, and a base that rotates long rows differently rotates by this length.
    pub fn declare_length(&mut self, sequence: usize, tokens: usize) {
        self.sequences[sequence].template.whole = Some(tokens);
    }

    /// The next `capacity` free slots.
    fn take_slots(&mut self, capacity: usize) -> Result<Vec<Range<usize>>> {
        let Some(taken) = self.slots.take(capacity) else {
            bail!(
                "a sequence of {capacity} tokens was opened where {} of {} cache slots are left",
                self.slots.free(),
                self.slots.len()
            );
        };
        Ok(taken)
    }

    /// Adds tokens to a sequence that has room for them, and returns those to compute: where its length makes cached keys useless, all of them.
    fn take_tokens(&mut self, index: usize, tokens: &[u32]) -> Result<Vec<u32>> {
        let sequence = &mut self.sequences[index];
        let cached = sequence.ids.len();
        if cached == 0 {
            sequence.source = source_len(self.base, sequence, tokens);
        }
        sequence.ids.extend_from_slice(tokens);
        let length = sequence.template.whole.unwrap_or(0).max(sequence.ids.len());
        let rotated_for = sequence.rotated_for.replace(length);
        if cached == 0 || self.are_rotated_alike(rotated_for, length) {
            return Ok(tokens.to_vec());
        }
        let ids = self.sequences[index].ids.clone();
        self.unshare(index)?;
        Ok(ids)
    }

    /// Whether keys that were rotated for a row length are those of a row of this length.
    fn are_rotated_alike(&self, rotated_for: Option<usize>, length: usize) -> bool {
        rotated_for.is_some_and(|rotated_for| self.base.rotates_alike(rotated_for, length))
    }

    /// Gives a sequence slots of its own, where another uses some of them; the cache grows if it has none left.
    fn unshare(&mut self, index: usize) -> Result<()> {
        let sequence = &self.sequences[index];
        if !self.slots.are_shared(&sequence.slots) {
            return Ok(());
        }
        let capacity = sequence.capacity();
        if capacity > self.slots.free() {
            self.cache = self.cache.extended(capacity)?;
            self.slots.extend(capacity);
        }
        let own = self.take_slots(capacity)?;
        self.slots.release(&std::mem::replace(&mut self.sequences[index].slots, own));
        Ok(())
    }

    /// Appends tokens to sequences, each at most once per call, and returns the new tokens' hidden states after the final
    /// norm, `[tokens, hidden]`, in the order given. All of them have this precision over quantized weights.
    ///
    /// # Errors
    /// If a sequence has no room for its tokens, or is given twice, or if a layer fails. All sequences have the tokens of
    /// before then.
    pub fn forward(&mut self, appended: &[(usize, &[u32])], precision: TokenPrecision) -> Result<Tensor> {
        self.ensure_room(appended)?;
        self.with_rollback(appended, |decoder| decoder.states(appended, precision))
    }

    /// Appends to sequences; if that fails, they have the tokens of before.
    fn with_rollback(
        &mut self,
        appended: &[(usize, &[u32])],
        append: impl FnOnce(&mut Self) -> Result<Tensor> + Send,
    ) -> Result<Tensor> {
        let state = |&(index, _): &(usize, &[u32])| {
            let CachedSequence { ids, source, rotated_for, .. } = &self.sequences[index];
            SequenceState { index, tokens: ids.len(), source: *source, rotated_for: *rotated_for }
        };
        let before: Vec<SequenceState> = appended.iter().map(state).collect();
        let result = with_awake_threads(self.base.device().is_cpu(), || append(self));
        if result.is_err() {
            before.into_iter().for_each(|state| self.restore(state));
        }
        result
    }

    /// Takes back the tokens of a call. Their slots are written again with those that come instead.
    fn restore(&mut self, SequenceState { index, tokens, source, rotated_for }: SequenceState) {
        // If the call read the whole sequence again, some layers may have the keys of its new length.
        let now = self.sequences[index].rotated_for;
        let are_kept = now.is_none_or(|length| self.are_rotated_alike(rotated_for, length));
        let sequence = &mut self.sequences[index];
        sequence.ids.truncate(tokens);
        sequence.source = source;
        sequence.rotated_for = if are_kept { rotated_for } else { None };
    }

    /// Fails unless each sequence has room for its tokens and is given once.
    fn ensure_room(&self, appended: &[(usize, &[u32])]) -> Result<()> {
        let mut given = HashSet::with_capacity(appended.len());
        for &(index, tokens) in appended {
            if !given.insert(index) {
                bail!("sequence {index} was given twice in one call");
            }
            let sequence = &self.sequences[index];
            let (cached, capacity) = (sequence.ids.len(), sequence.capacity());
            if cached + tokens.len() > capacity {
                bail!("sequence {index} has room for {capacity} tokens; {} were appended to {cached}", tokens.len());
            }
        }
        Ok(())
    }

    fn states(&mut self, appended: &[(usize, &[u32])], precision: TokenPrecision) -> Result<Tensor> {
        let (mut ids, mut sequences, mut keys, mut new) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut sources = Vec::with_capacity(appended.len());
        for &(index, tokens) in appended {
            let computed = self.take_tokens(index, tokens)?;
            let sequence = &self.sequences[index];
            let (start, len) = (ids.len(), computed.len());
            sequences.push(Sequence { start, len, position: sequence.ids.len() - len, ..sequence.template.clone() });
            keys.push(sequence.keys());
            sources.push(sequence.source);
            ids.extend(computed);
            new.extend((ids.len() - tokens.len()..ids.len()).map(|token| token as u32));
        }
        let plan = self.base.cached_plan(SequenceBatch::new(sequences), (keys, &sources), self.cache.clone());
        let h = self.base.hidden_states(&ids, &plan.with_precision(precision), self.patches)?;
        let h = if new.len() < ids.len() { h.index_select(&Tensor::new(new, h.device())?, 0)? } else { h };
        self.base.final_norm(&h)
    }

    /// Appends tokens to sequences and returns the logits that follow each one's last: `[sequences given, vocabulary]`. A
    /// token after a sequence's prompt, alone in its call, has the precision that the base decodes in. Prompts are exact,
    /// also where the sequence's length makes it necessary to read them again.
    ///
    /// # Errors
    /// As [`CachedDecoder::forward`], and if a sequence is given no tokens, or a source alone. Logits may be NaN:
    /// [`Sampler::next`](crate::sampling::Sampler::next) refuses those.
    pub fn next_logits(&mut self, appended: &[(usize, &[u32])]) -> Result<Tensor> {
        self.ensure_room(appended)?;
        if let Some((index, _)) = appended.iter().find(|(_, tokens)| tokens.is_empty()) {
            bail!("no tokens were appended to sequence {index}, whose next logits were asked for");
        }
        for &(index, tokens) in appended.iter().filter(|(index, _)| self.tokens_in(*index) == 0) {
            if source_len(self.base, &self.sequences[index], tokens) == tokens.len() {
                bail!(
                    "all {} tokens that were appended to sequence {index} are an encoder's, but its next logits were asked \
                     for: append the token that the decoder starts with, too",
                    tokens.len()
                );
            }
        }
        self.with_rollback(appended, |decoder| decoder.logits_by_precision(appended))
    }

    /// The logits after each sequence's last token, in the precision that the token has.
    fn logits_by_precision(&mut self, appended: &[(usize, &[u32])]) -> Result<Tensor> {
        let precision = self.base.decoding();
        let is_decoded = |at: &usize| precision != TokenPrecision::Exact && self.is_decoded(appended[*at]);
        let (decoded, read): (Vec<usize>, Vec<usize>) = (0..appended.len()).partition(is_decoded);
        if decoded.is_empty() {
            return self.logits(appended, TokenPrecision::Exact);
        }
        if read.is_empty() {
            return self.logits(appended, precision);
        }
        // Apart, so that what a row gets does not depend on whether another's prompt is read beside it.
        let of = |rows: &[usize]| rows.iter().map(|&at| appended[at]).collect::<Vec<_>>();
        let parts = [self.logits(&of(&decoded), precision)?, self.logits(&of(&read), TokenPrecision::Exact)?];
        let mut places = vec![0u32; appended.len()];
        for (place, &at) in decoded.iter().chain(&read).enumerate() {
            places[at] = place as u32;
        }
        let places = Tensor::from_slice(&places, places.len(), parts[0].device())?;
        Tensor::cat(&parts, 0)?.index_select(&places, 0)
    }

    /// Whether a sequence has read its prompt before this token, and need not read it again.
    fn is_decoded(&self, (index, tokens): (usize, &[u32])) -> bool {
        let sequence = &self.sequences[index];
        let length = sequence.ids.len() + tokens.len();
        tokens.len() == 1
            && sequence.ids.len() >= sequence.template.whole.unwrap_or(1)
            && (sequence.ids.is_empty() || self.are_rotated_alike(sequence.rotated_for, length))
    }

    fn logits(&mut self, appended: &[(usize, &[u32])], precision: TokenPrecision) -> Result<Tensor> {
        let h = self.states(appended, precision)?;
        let ends: Vec<u32> = appended
            .iter()
            .scan(0, |end, (_, tokens)| {
                *end += tokens.len() as u32;
                Some(*end - 1)
            })
            .collect();
        let last = h.index_select(&Tensor::from_slice(&ends, ends.len(), h.device())?, 0)?;
        let one = |(start, &(index, _)): (usize, &(usize, &[u32]))| {
            let sequence = &self.sequences[index];
            let position = sequence.ids.len().saturating_sub(1);
            Sequence { start, len: 1, position, ..sequence.template.clone() }
        };
        let batch = SequenceBatch::new(appended.iter().enumerate().map(one));
        self.base.lm_head().logits_at(&last, HeadPatch::of(self.patches, &batch), precision)
    }

    /// Number of tokens in a sequence.
    pub fn tokens_in(&self, sequence: usize) -> usize {
        self.sequences[sequence].ids.len()
    }
}
