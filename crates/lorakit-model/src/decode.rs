//! Cached decoding: rows that grow token by token, and rows that share what came before them.

use crate::base::Base;
use crate::layer::lm_head::HeadPatch;
use crate::plan::Cache;
use candle_core::{Result, Tensor, bail};
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use std::ops::Range;

/// Rows whose keys and values are kept, so that every new token costs itself only.
pub struct Decoding<'a> {
    base: &'a Base,
    patches: &'a Patches,
    cache: Cache,
    slots: usize,
    taken: usize,
    rows: Vec<CachedRow>,
}

/// One row: what it shares with another, and its own slots.
#[derive(Clone)]
struct CachedRow {
    /// Slots of another row that come before its own.
    before: Vec<Range<usize>>,
    own: Range<usize>,
    /// How many of its own slots are filled.
    filled: usize,
    /// What a router reads: the row's expert or its weights.
    template: Sequence,
}

impl CachedRow {
    fn len(&self) -> usize {
        self.before.iter().map(Range::len).sum::<usize>() + self.filled
    }

    fn keys(&self) -> Vec<Range<usize>> {
        let own = self.own.start..self.own.start + self.filled;
        self.before.iter().cloned().chain([own]).filter(|r| !r.is_empty()).collect()
    }
}

impl<'a> Decoding<'a> {
    /// Room for `slots` tokens of all rows together.
    pub fn new(base: &'a Base, patches: &'a Patches, slots: usize) -> Result<Self> {
        Ok(Self { base, patches, cache: base.cache(slots)?, slots, taken: 0, rows: Vec::new() })
    }

    /// A new, empty row with room for `capacity` tokens. `template` carries what routers read: the row's expert or
    /// its weights.
    pub fn open(&mut self, capacity: usize, template: Sequence) -> Result<usize> {
        self.open_after(Vec::new(), capacity, template)
    }

    /// A new row that goes on where `row` stands now, sharing its tokens.
    pub fn branch(&mut self, row: usize, capacity: usize) -> Result<usize> {
        let parent = self.rows[row].clone();
        self.open_after(parent.keys(), capacity, parent.template)
    }

    fn open_after(&mut self, before: Vec<Range<usize>>, capacity: usize, template: Sequence) -> Result<usize> {
        if self.taken + capacity > self.slots {
            bail!(
                "a row of {capacity} tokens was asked for where {} of {} slots are left",
                self.slots - self.taken,
                self.slots
            );
        }
        let own = self.taken..self.taken + capacity;
        self.taken = own.end;
        self.rows.push(CachedRow { before, own, filled: 0, template });
        Ok(self.rows.len() - 1)
    }

    /// Feeds tokens to rows, each row at most once, and returns the last hidden states of all fed tokens after the
    /// last norm, `[tokens, hidden]`, in the order given.
    pub fn feed(&mut self, fed: &[(usize, &[u32])]) -> Result<Tensor> {
        let (mut ids, mut rows, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for &(index, tokens) in fed {
            let row = &mut self.rows[index];
            if row.filled + tokens.len() > row.own.len() {
                bail!(
                    "row {index} has room for {} tokens, and {} more were fed to {}",
                    row.own.len(),
                    tokens.len(),
                    row.filled
                );
            }
            let (start, position) = (ids.len(), row.len());
            row.filled += tokens.len();
            rows.push(Sequence { start, len: tokens.len(), position, ..row.template.clone() });
            keys.push(row.keys());
            ids.extend_from_slice(tokens);
        }
        let plan = self.base.cached_plan(SequenceBatch::new(rows), keys, self.cache.clone());
        let h = self.base.hidden(&ids, &plan, self.patches)?;
        self.base.last_norm(&h)
    }

    /// Feeds tokens to rows and returns the logits that follow each row's last: `[rows fed, vocabulary]`.
    pub fn next_logits(&mut self, fed: &[(usize, &[u32])]) -> Result<Tensor> {
        let h = self.feed(fed)?;
        let ends: Vec<u32> = fed
            .iter()
            .scan(0, |end, (_, tokens)| {
                *end += tokens.len() as u32;
                Some(*end - 1)
            })
            .collect();
        let last = h.index_select(&Tensor::from_slice(&ends, ends.len(), h.device())?, 0)?;
        let one = |(start, &(row, _)): (usize, &(usize, &[u32]))| Sequence {
            start,
            len: 1,
            position: self.rows[row].len().saturating_sub(1),
            ..self.rows[row].template.clone()
        };
        let batch = SequenceBatch::new(fed.iter().enumerate().map(one));
        self.base.head().logits(&last, HeadPatch::of(self.patches, &batch))
    }

    /// Number of tokens that a row has seen.
    pub fn len(&self, row: usize) -> usize {
        self.rows[row].len()
    }

    /// Whether no row was opened.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}
