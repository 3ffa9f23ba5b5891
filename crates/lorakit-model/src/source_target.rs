//! What a row is to an encoder-decoder: its first tokens are the source, which the encoder reads, and those after it are the
//! target, which the decoder reads. Hidden states of both are packed as the rows are; a layer changes those of its stack.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::segment::AttentionSegment;
use crate::layer::rope::RopeFrequencies;
use crate::layer::row_ranges::RowRanges;
use lorakit_lora::{Sequence, SequenceBatch};
use std::ops::Range;
use std::sync::Arc;

/// The tokens of one stack in a batch.
#[derive(Clone, Debug)]
pub(crate) struct StackTokens {
    /// Where they are among all.
    pub(crate) rows: RowRanges,
    /// The rows as they are packed without the other stack's tokens.
    pub(crate) sequences: SequenceBatch,
    /// Their attention to themselves.
    pub(crate) layout: AttentionLayout,
}

/// The rows of a batch, each split into source and target.
#[derive(Clone, Debug)]
pub(crate) struct SourceTarget {
    /// Number of the encoder's layers, the first of all.
    pub(crate) encoder_layers: usize,
    pub(crate) source: StackTokens,
    pub(crate) target: StackTokens,
    /// The target tokens with the keys that they see of the source: its tokens, or their slots in a cache.
    pub(crate) across: Arc<[AttentionSegment]>,
    /// The source tokens with their slots in the cache, if there is one.
    pub(crate) memory_slots: Arc<[AttentionSegment]>,
}

/// A row: its tokens among all of a batch, and how many are the source's.
struct SplitRow<'a> {
    row: &'a Sequence,
    source: usize,
}

impl SplitRow<'_> {
    fn source(&self) -> Range<usize> {
        self.row.start..self.row.start + self.source
    }

    fn target(&self) -> Range<usize> {
        self.row.start + self.source..self.row.start + self.row.len
    }
}

/// Number of the first tokens of a whole row that are its source.
pub(crate) fn source_len(row: &Sequence) -> usize {
    row.source.unwrap_or_else(|| row.len.saturating_sub(1)).min(row.len)
}

impl SourceTarget {
    /// Whole rows.
    pub(crate) fn packed(encoder_layers: usize, sequences: &SequenceBatch) -> Self {
        let rows: Vec<SplitRow> = sequences.iter().map(|row| SplitRow { row, source: source_len(row) }).collect();
        let source = StackTokens::packed(&rows, SplitRow::source);
        let target = StackTokens::packed(&rows, SplitRow::target);
        let across = target.sequences.iter().zip(source.sequences.iter());
        let across =
            across.map(|(target, source)| AttentionSegment { queries: target.tokens(), keys: vec![source.tokens()] });
        Self { encoder_layers, across: across.collect(), source, target, memory_slots: Arc::default() }
    }

    /// Rows whose keys are in a cache: `slots[i]` are those of row `i`, of which the first `sources[i]` are its source's. The
    /// source is among the tokens here where a row begins.
    pub(crate) fn cached(
        encoder_layers: usize,
        sequences: &SequenceBatch,
        (slots, sources): (&[Vec<Range<usize>>], &[usize]),
    ) -> Self {
        let split = |(row, &source): (_, &usize)| {
            let row: &Sequence = row;
            SplitRow { row, source: if row.position == 0 { source } else { 0 } }
        };
        let rows: Vec<SplitRow> = sequences.iter().zip(sources).map(split).collect();
        let (source, mut target) =
            (StackTokens::packed(&rows, SplitRow::source), StackTokens::packed(&rows, SplitRow::target));
        let positions = rows.iter().zip(sources).map(|(row, &source)| (row.row.position + row.source) - source);
        target.sequences = SequenceBatch::new(
            target.sequences.iter().zip(positions).map(|(row, position)| Sequence { position, ..row.clone() }),
        );
        let parts: Vec<_> = slots.iter().zip(sources).map(|(slots, &source)| split_slots(slots, source)).collect();
        let segments = |stack: &StackTokens, keys: fn(&SplitSlots) -> &Vec<Range<usize>>| -> Arc<[AttentionSegment]> {
            let rows = stack.sequences.iter().zip(&parts);
            rows.map(|(row, parts)| AttentionSegment { queries: row.tokens(), keys: keys(parts).clone() }).collect()
        };
        let across = segments(&target, |parts| &parts.source);
        let memory_slots = segments(&source, |parts| &parts.source);
        target.layout = layout(segments(&target, |parts| &parts.target));
        Self { encoder_layers, source, target, across, memory_slots }
    }

    /// The tokens that layer `index` changes.
    pub(crate) fn stack(&self, index: usize) -> &StackTokens {
        if self.is_encoder(index) { &self.source } else { &self.target }
    }

    /// Whether layer `index` is one of the encoder.
    pub(crate) fn is_encoder(&self, index: usize) -> bool {
        index < self.encoder_layers
    }

    /// Where tokens of targets, given by their indices among all, are among those of targets.
    pub(crate) fn target_indices(&self, tokens: &[u32]) -> Vec<u32> {
        self.target.rows.positions(tokens)
    }
}

impl StackTokens {
    /// The `own` tokens of each row, which attend to each other.
    fn packed<'a>(rows: &[SplitRow<'a>], own: fn(&SplitRow<'a>) -> Range<usize>) -> Self {
        let mut start = 0;
        let sequences = SequenceBatch::new(rows.iter().map(|row| {
            let len = own(row).len();
            start += len;
            Sequence { start: start - len, len, position: 0, whole: None, source: None, ..row.row.clone() }
        }));
        let segment = |row: &Sequence| AttentionSegment { queries: row.tokens(), keys: vec![row.tokens()] };
        Self {
            rows: RowRanges::new(rows.iter().map(own)),
            layout: layout(sequences.iter().map(segment).collect()),
            sequences,
        }
    }
}

/// Attention without rotation.
fn layout(segments: Arc<[AttentionSegment]>) -> AttentionLayout {
    AttentionLayout::new(RopeFrequencies::none().angles(&[]), segments)
}

/// The slots of a row's source and of its target.
struct SplitSlots {
    source: Vec<Range<usize>>,
    target: Vec<Range<usize>>,
}

fn split_slots(slots: &[Range<usize>], source: usize) -> SplitSlots {
    let (mut left, mut parts) = (source, SplitSlots { source: Vec::new(), target: Vec::new() });
    for run in slots {
        let of_source = run.len().min(left);
        left -= of_source;
        let middle = run.start + of_source;
        parts.source.extend((of_source > 0).then_some(run.start..middle));
        parts.target.extend((middle < run.end).then_some(middle..run.end));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(batch: &SequenceBatch) -> Vec<Range<usize>> {
        batch.iter().map(Sequence::tokens).collect()
    }

    #[test]
    fn a_row_is_split_where_its_source_ends_or_before_its_last_token() {
        let row = |start, len, source| Sequence { start, len, source, ..Sequence::default() };
        let batch = SequenceBatch::new([row(0, 5, Some(3)), row(5, 4, None)]);
        let split = SourceTarget::packed(2, &batch);
        assert_eq!(tokens(&split.source.sequences), [0..3, 3..6]);
        assert_eq!(tokens(&split.target.sequences), [0..2, 2..3]);
        assert_eq!(split.target_indices(&[3, 4, 8]), [0, 1, 2]);
        let across: Vec<_> = split.across.iter().map(|one| (one.queries.clone(), one.keys[0].clone())).collect();
        assert_eq!(across, [(0..2, 0..3), (2..3, 3..6)]);
    }

    #[test]
    fn slots_of_a_cache_are_those_of_source_and_target() {
        let row = |start, len, position| Sequence { start, len, position, ..Sequence::default() };
        // A row that begins, with its source of 3 tokens, and one that goes on after 4 tokens, 2 of them its source's.
        let batch = SequenceBatch::new([row(0, 4, 0), row(4, 1, 4)]);
        let slots = [vec![0..2, 10..12], vec![4..6, 20..23]];
        let split = SourceTarget::cached(2, &batch, (&slots, &[3, 2]));
        assert_eq!(tokens(&split.source.sequences), [0..3, 3..3]);
        assert_eq!(tokens(&split.target.sequences), [0..1, 1..2]);
        let keys = |segments: &[AttentionSegment]| segments.iter().flat_map(|one| one.keys.clone()).collect::<Vec<_>>();
        assert_eq!(keys(&split.across), [0..2, 10..11, 4..6]);
        assert_eq!(keys(&split.target.layout.segments), [11..12, 20..23]);
        assert_eq!(split.memory_slots[0].own_keys(), [(2, 10..11), (0, 0..2)]);
        let positions: Vec<usize> = split.target.sequences.iter().map(|row| row.position).collect();
        assert_eq!(positions, [0, 2]);
    }
}
