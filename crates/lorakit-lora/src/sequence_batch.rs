//! Which tokens belong to which sequence: sequences of different lengths are packed into one `[tokens, d]`, without
//! padding.

use std::ops::Range;
use std::sync::Arc;

/// One sequence (a prompt, or a prompt with its answer) among the packed tokens.
#[derive(Clone, Debug, Default)]
pub struct Sequence {
    /// Index of its first token among the packed tokens.
    pub start: usize,
    /// Number of its tokens here.
    pub len: usize,
    /// Position of its first token here within the whole sequence; above zero where a cache holds earlier tokens.
    pub position: usize,
    /// Number of tokens of the whole row, where more of them follow than are here: some bases rotate the tokens of a long
    /// row in another way. It decides only there.
    pub whole: Option<usize>,
    /// Number of its first tokens that the encoder of an encoder-decoder reads; where none is given all but the last, as a
    /// prompt ends with the decoder's start token. Decoders ignore it.
    pub source: Option<usize>,
    /// The one expert of the sequence, where a batch mixes sequences of several.
    pub expert: Option<usize>,
    /// The weight of every expert of a library, where a router decides by sequence.
    pub weights: Option<Arc<[f32]>>,
}

impl Sequence {
    /// Its tokens among the packed tokens.
    pub fn tokens(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Number of tokens of the row that it belongs to, as far as it is known.
    pub fn whole_len(&self) -> usize {
        self.whole.unwrap_or(0).max(self.position + self.len)
    }
}

/// The sequences of a batch, in the order of their tokens.
#[derive(Clone, Debug, Default)]
pub struct SequenceBatch(Vec<Sequence>);

impl SequenceBatch {
    /// Consecutive sequences of these lengths, each from position zero.
    pub fn packed(lengths: impl IntoIterator<Item = usize>) -> Self {
        let mut start = 0;
        Self::new(lengths.into_iter().map(|len| {
            let sequence = Sequence { start, len, ..Sequence::default() };
            start += len;
            sequence
        }))
    }

    /// Sequences as given. The caller ensures that they are consecutive.
    pub fn new(sequences: impl IntoIterator<Item = Sequence>) -> Self {
        Self(sequences.into_iter().collect())
    }

    /// Number of tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.0.last().map_or(0, |sequence| sequence.start + sequence.len)
    }

    /// The sequences in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Sequence> {
        self.0.iter()
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The position of every token within its sequence.
    pub fn positions(&self) -> Vec<u32> {
        self.iter()
            .flat_map(|sequence| (sequence.position..sequence.position + sequence.len).map(|p| p as u32))
            .collect()
    }

    /// The batch of the packed `tokens` alone: each sequence with those of its tokens that are among them.
    pub fn narrow(&self, tokens: Range<usize>) -> Self {
        let part = |sequence: &Sequence| {
            let (start, end) = (sequence.start.max(tokens.start), (sequence.start + sequence.len).min(tokens.end));
            let position = sequence.position + start.saturating_sub(sequence.start);
            (start < end).then(|| Sequence {
                start: start - tokens.start,
                len: end - start,
                position,
                ..sequence.clone()
            })
        };
        Self(self.iter().filter_map(part).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrowed_batch_holds_the_part_of_each_sequence_within_the_range() {
        let batch = SequenceBatch::packed([3, 0, 4, 2]);
        let parts: Vec<_> = batch.narrow(2..8).iter().map(|sequence| (sequence.tokens(), sequence.position)).collect();
        assert_eq!(parts, [(0..1, 2), (1..5, 0), (5..6, 0)]);
        assert!(batch.narrow(3..3).is_empty());
        assert_eq!(batch.narrow(0..9).tokens(), batch.tokens());
    }
}
