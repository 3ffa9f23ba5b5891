//! Decoding with cached keys and values: sequences that grow token by token, and sequences that share a prefix.

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
    slots: usize,
    used: usize,
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
        Ok(Self { base, patches, cache: base.kv_cache(slots)?, slots, used: 0, sequences: Vec::new() })
    }

    /// A new, empty sequence with room for `capacity` tokens; returns its index. `template` carries what routers read:
    /// the sequence's expert or its weights.
    ///
    /// # Errors
    /// If fewer slots are left.
    pub fn open(&mut self, capacity: usize, template: Sequence) -> Result<usize> {
        self.open_after(Vec::new(), capacity, template)
    }

    /// A new sequence that continues `sequence` from where it is now, and shares its tokens.
    ///
    /// # Errors
    /// If fewer than `capacity` slots are left.
    pub fn branch(&mut self, sequence: usize, capacity: usize) -> Result<usize> {
        let parent = self.sequences[sequence].clone();
        self.open_after(parent.keys(), capacity, parent.template)
    }

    fn open_after(&mut self, prefix: Vec<Range<usize>>, capacity: usize, template: Sequence) -> Result<usize> {
        if self.used + capacity > self.slots {
            bail!(
                "a sequence of {capacity} tokens was opened where {} of {} cache slots are left",
                self.slots - self.used,
                self.slots
            );
        }
        let own = self.used..self.used + capacity;
        self.used = own.end;
        self.sequences.push(CachedSequence { prefix, own, filled: 0, template });
        Ok(self.sequences.len() - 1)
    }

    /// Appends tokens to sequences, each at most once per call, and returns the new tokens' hidden states after the final
    /// norm, `[tokens, hidden]`, in the order given.
    ///
    /// # Errors
    /// If a sequence has no room for its tokens.
    pub fn forward(&mut self, appended: &[(usize, &[u32])]) -> Result<Tensor> {
        let (mut ids, mut sequences, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for &(index, tokens) in appended {
            let sequence = &mut self.sequences[index];
            if sequence.filled + tokens.len() > sequence.own.len() {
                bail!(
                    "sequence {index} has room for {} tokens; {} were appended to {}",
                    sequence.own.len(),
                    tokens.len(),
                    sequence.filled
                );
            }
            let (start, position) = (ids.len(), sequence.len());
            sequence.filled += tokens.len();
            sequences.push(Sequence { start, len: tokens.len(), position, ..sequence.template.clone() });
            keys.push(sequence.keys());
            ids.extend_from_slice(tokens);
        }
        let plan = self.base.cached_plan(SequenceBatch::new(sequences), keys, self.cache.clone());
        let h = self.base.hidden_states(&ids, &plan, self.patches)?;
        self.base.final_norm(&h)
    }

    /// Appends tokens to sequences and returns the logits that follow each one's last: `[sequences given, vocabulary]`.
    ///
    /// # Errors
    /// As [`CachedDecoder::forward`].
    pub fn next_logits(&mut self, appended: &[(usize, &[u32])]) -> Result<Tensor> {
        let h = self.forward(appended)?;
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
        self.base.lm_head().logits(&last, HeadPatch::of(self.patches, &batch))
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
