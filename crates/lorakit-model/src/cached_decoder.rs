//! Decoding with cached keys and values: sequences that grow token by token, and sequences that share a prefix.
//!
//! Some bases rotate all tokens of a row by its length. There, a sequence that has become longer than what its cached keys
//! were rotated for is computed again from its first token.

use crate::base::Base;
use crate::kv_cache::KvCache;
use crate::layer::lm_head::HeadPatch;
use candle_core::{Result, Tensor, bail};
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use std::ops::Range;

/// Sequences whose keys and values are cached, so that only new tokens are computed.
pub struct CachedDecoder<'a> {
    base: &'a Base,
    patches: &'a Patches,
    cache: KvCache,
    /// Those that sequences are opened in.
    slots: usize,
    used: usize,
    /// All slots of the cache: behind those, sequences are computed again whose own slots others share.
    all_slots: usize,
    sequences: Vec<CachedSequence>,
}

/// One sequence: the slots that it shares with another, and its own.
#[derive(Clone)]
struct CachedSequence {
    /// Slots of another sequence that come before its own.
    prefix: Vec<Range<usize>>,
    own: Range<usize>,
    /// How many of its own slots are filled.
    filled: usize,
    /// Whether another sequence shares its slots.
    shared: bool,
    /// All of its tokens.
    ids: Vec<u32>,
    /// The row length that its cached keys were rotated for.
    rotated_for: usize,
    /// What a router reads: the sequence's expert or its weights.
    template: Sequence,
}

impl CachedSequence {
    fn len(&self) -> usize {
        self.prefix.iter().map(Range::len).sum::<usize>() + self.filled
    }

    fn keys(&self) -> Vec<Range<usize>> {
        let own = self.own.start..self.own.start + self.filled;
        self.prefix.iter().cloned().chain([own]).filter(|range| !range.is_empty()).collect()
    }
}

impl<'a> CachedDecoder<'a> {
    /// A cache of `slots` tokens for all sequences together.
    pub fn new(base: &'a Base, patches: &'a Patches, slots: usize) -> Result<Self> {
        Ok(Self {
            base,
            patches,
            cache: base.kv_cache(slots)?,
            slots,
            used: 0,
            all_slots: slots,
            sequences: Vec::new(),
        })
    }

    /// A new, empty sequence with room for `capacity` tokens; returns its index. `template` carries what routers read:
    /// the sequence's expert or its weights.
    ///
    /// # Errors
    /// If fewer slots are left.
    pub fn open(&mut self, capacity: usize, template: Sequence) -> Result<usize> {
        let own = self.take_slots(capacity)?;
        let (prefix, ids) = (Vec::new(), Vec::new());
        let sequence = CachedSequence { prefix, own, filled: 0, shared: false, ids, rotated_for: 0, template };
        self.sequences.push(sequence);
        Ok(self.sequences.len() - 1)
    }

    /// A new sequence that continues `sequence` from where it is now, and shares its tokens.
    ///
    /// # Errors
    /// If fewer than `capacity` slots are left.
    pub fn branch(&mut self, sequence: usize, capacity: usize) -> Result<usize> {
        let own = self.take_slots(capacity)?;
        let parent = &mut self.sequences[sequence];
        parent.shared = true;
        let branch = CachedSequence { prefix: parent.keys(), own, filled: 0, shared: false, ..parent.clone() };
        self.sequences.push(branch);
        Ok(self.sequences.len() - 1)
    }

    /// Declares how many tokens a sequence will have in the end, where that is known: it decides how a base that rotates
    /// long rows in another way rotates this one. Otherwise the tokens so far do.
    pub fn declare_length(&mut self, sequence: usize, tokens: usize) {
        self.sequences[sequence].template.whole = Some(tokens);
    }

    /// The next `capacity` free slots.
    fn take_slots(&mut self, capacity: usize) -> Result<Range<usize>> {
        if self.used + capacity > self.slots {
            bail!(
                "a sequence of {capacity} tokens was opened where {} of {} cache slots are left",
                self.slots - self.used,
                self.slots
            );
        }
        let own = self.used..self.used + capacity;
        self.used = own.end;
        Ok(own)
    }

    /// Adds tokens to a sequence, and returns those to compute: where its length makes cached keys useless, all of them.
    fn take_tokens(&mut self, index: usize, tokens: &[u32]) -> Result<Vec<u32>> {
        let sequence = &mut self.sequences[index];
        let room = sequence.own.len() - sequence.filled;
        if tokens.len() > room {
            bail!(
                "sequence {index} has room for {} tokens; {} were appended to {}",
                sequence.own.len(),
                tokens.len(),
                sequence.filled
            );
        }
        let cached = sequence.ids.len();
        sequence.ids.extend_from_slice(tokens);
        let length = sequence.template.whole.unwrap_or(0).max(sequence.ids.len());
        let rotated_for = std::mem::replace(&mut sequence.rotated_for, length);
        if cached == 0 || self.base.rotates_alike(rotated_for, length) {
            sequence.filled += tokens.len();
            return Ok(tokens.to_vec());
        }
        let ids = sequence.ids.clone();
        if sequence.shared || !sequence.prefix.is_empty() {
            // Its slots, or some of them, are also another sequence's.
            let (start, more) = (self.all_slots, cached + room);
            self.cache = self.cache.extended(more)?;
            self.all_slots += more;
            (sequence.own, sequence.prefix, sequence.shared) = (start..self.all_slots, Vec::new(), false);
        }
        sequence.filled = ids.len();
        Ok(ids)
    }

    /// Appends tokens to sequences, each at most once per call, and returns the new tokens' hidden states after the final
    /// norm, `[tokens, hidden]`, in the order given.
    ///
    /// # Errors
    /// If a sequence has no room for its tokens.
    pub fn forward(&mut self, appended: &[(usize, &[u32])]) -> Result<Tensor> {
        on_pool(|| self.states(appended))
    }

    fn states(&mut self, appended: &[(usize, &[u32])]) -> Result<Tensor> {
        let (mut ids, mut sequences, mut keys, mut new) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for &(index, tokens) in appended {
            let computed = self.take_tokens(index, tokens)?;
            let sequence = &self.sequences[index];
            let (start, len) = (ids.len(), computed.len());
            sequences.push(Sequence { start, len, position: sequence.len() - len, ..sequence.template.clone() });
            keys.push(sequence.keys());
            ids.extend(computed);
            new.extend((ids.len() - tokens.len()..ids.len()).map(|token| token as u32));
        }
        let plan = self.base.cached_plan(SequenceBatch::new(sequences), keys, self.cache.clone());
        let h = self.base.hidden_states(&ids, &plan, self.patches)?;
        let h = if new.len() < ids.len() { h.index_select(&Tensor::new(new, h.device())?, 0)? } else { h };
        self.base.final_norm(&h)
    }

    /// Appends tokens to sequences and returns the logits that follow each one's last: `[sequences given, vocabulary]`.
    ///
    /// # Errors
    /// As [`CachedDecoder::forward`], and if a logit is not finite.
    pub fn next_logits(&mut self, appended: &[(usize, &[u32])]) -> Result<Tensor> {
        on_pool(|| self.logits(appended))
    }

    fn logits(&mut self, appended: &[(usize, &[u32])]) -> Result<Tensor> {
        let h = self.states(appended)?;
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
            let position = sequence.len().saturating_sub(1);
            Sequence { start, len: 1, position, ..sequence.template.clone() }
        };
        let batch = SequenceBatch::new(appended.iter().enumerate().map(one));
        let precision = self.base.decoding_precision(appended.iter().map(|(_, tokens)| tokens.len()));
        let logits = self.base.lm_head().logits_at(&last, HeadPatch::of(self.patches, &batch), precision)?;
        if !logits.sum_all()?.to_scalar::<f32>()?.is_finite() {
            bail!(
                "the logits of the next token are not finite: a weight of the base or of an adapter is NaN or too large"
            );
        }
        Ok(logits)
    }

    /// Number of tokens in a sequence.
    pub fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].len()
    }

    /// Whether no sequence was opened.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }
}

/// Runs `op` on a thread of the pool. A decoded token has hundreds of parallel regions, each of which would wake up the pool
/// and then the caller, were the caller not one of its threads.
fn on_pool<R: Send>(op: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| op())
}
