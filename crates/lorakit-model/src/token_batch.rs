//! Tokenized rows, packed one after another, with the tokens that carry loss.

use candle_core::{Device, Result, Tensor};
use lorakit_lora::{Sequence, SequenceBatch};

/// A token to be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetToken {
    /// The index, among the packed tokens, of the one whose hidden state predicts it.
    pub at: u32,
    /// The token that should come next.
    pub id: u32,
    /// The row that it belongs to.
    pub row: u32,
}

/// Rows as one sequence of packed tokens, without padding.
#[derive(Clone, Debug, Default)]
pub struct TokenBatch {
    ids: Vec<u32>,
    sequences: Vec<Sequence>,
    targets: Vec<TargetToken>,
}

impl TokenBatch {
    /// Adds a row: `prompt` carries no loss, every token of `target` does. The target's last token is predicted but never
    /// read, so it is not among the packed tokens.
    pub fn push(&mut self, prompt: &[u32], target: &[u32], expert: Option<usize>) {
        let tokens = [prompt, target].concat();
        let loss: Vec<bool> = (0..tokens.len()).map(|i| i >= prompt.len()).collect();
        self.push_masked(&tokens, &loss, expert);
    }

    /// Adds a row of tokens, each with whether it carries loss. The last that does is predicted but never read, so it is
    /// not among the packed tokens, nor is anything after it; without any, all tokens are read. The first carries none,
    /// since nothing predicts it. To an encoder-decoder, what stands before the token that predicts the first is the source.
    ///
    /// # Panics
    /// If `loss` has another length than `tokens`.
    pub fn push_masked(&mut self, tokens: &[u32], loss: &[bool], expert: Option<usize>) {
        assert_eq!(tokens.len(), loss.len(), "tokens, and whether each carries loss");
        let (start, row) = (self.ids.len(), self.sequences.len() as u32);
        let read = loss.iter().rposition(|&loss| loss).unwrap_or(tokens.len());
        self.ids.extend_from_slice(&tokens[..read]);
        let predicted = tokens.iter().zip(loss).enumerate().skip(1).filter(|(_, (_, loss))| **loss);
        let target = |(i, (&id, _)): (usize, (&u32, &bool))| TargetToken { at: (start + i - 1) as u32, id, row };
        self.targets.extend(predicted.map(target));
        let len = self.ids.len() - start;
        let source = loss.iter().position(|&loss| loss).unwrap_or(len).checked_sub(1);
        self.sequences.push(Sequence { start, len, whole: Some(tokens.len()), source, expert, ..Sequence::default() });
    }

    /// The packed tokens.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The rows' sequences of packed tokens.
    pub fn sequences(&self) -> SequenceBatch {
        SequenceBatch::new(self.sequences.iter().cloned())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// The tokens to be predicted, row by row.
    pub fn targets(&self) -> &[TargetToken] {
        &self.targets
    }

    /// The targets' token ids.
    pub fn target_ids(&self) -> Vec<u32> {
        self.targets.iter().map(|target| target.id).collect()
    }

    /// Lets `change` set what sequences carry besides their tokens, such as expert weights.
    pub fn for_each_sequence(&mut self, change: impl FnMut(&mut Sequence)) {
        self.sequences.iter_mut().for_each(change);
    }

    /// The hidden states that predict the targets, `[targets, d]`, out of all, `[tokens, d]`.
    pub fn target_states(&self, h: &Tensor) -> Result<Tensor> {
        if self.targets.is_empty() {
            // A GPU launches no kernel of no elements.
            return h.narrow(0, 0, 0);
        }
        h.index_select(&self.target_indices(h.device())?, 0)
    }

    /// The indices of those among the packed tokens, `[targets]`.
    pub(crate) fn target_indices(&self, device: &Device) -> Result<Tensor> {
        let indices: Vec<u32> = self.targets.iter().map(|target| target.at).collect();
        Tensor::from_vec(indices, self.targets.len(), device)
    }

    /// The sequences of [`TokenBatch::target_states`], where nothing else is packed. Their tokens are no longer neighbors,
    /// and their positions mean nothing.
    pub fn target_sequences(&self) -> SequenceBatch {
        let mut counts = vec![0; self.sequences.len()];
        self.targets.iter().for_each(|target| counts[target.row as usize] += 1);
        let mut start = 0;
        SequenceBatch::new(self.sequences.iter().zip(counts).map(|(sequence, len)| {
            let sequence = Sequence { start, len, ..sequence.clone() };
            start += len;
            sequence
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "whether each carries loss")]
    fn every_token_says_whether_it_carries_loss() {
        TokenBatch::default().push_masked(&[1, 2, 3], &[false, true], None);
    }
}
