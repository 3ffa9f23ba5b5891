//! Tokenised rows, packed one behind the other, with the tokens that carry loss.

use crate::base::Base;
use crate::layer::lm_head::HeadPatch;
use candle_core::{Device, Result, Tensor};
use lorakit_lora::{Patches, Sequence, SequenceBatch};

/// A token to be predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The token, among the packed ones, whose hidden state predicts it.
    pub at: u32,
    /// The token that should come next.
    pub id: u32,
    /// The row that it belongs to.
    pub row: u32,
}

/// Rows of a batch as one sequence of tokens.
#[derive(Clone, Debug, Default)]
pub struct Packed {
    ids: Vec<u32>,
    rows: Vec<Sequence>,
    targets: Vec<Target>,
}

impl Packed {
    /// Adds a row: `prompt` carries no loss, every token of `target` does. The target's last token is only
    /// predicted, never read, and so is left out of the packed tokens.
    pub fn push(&mut self, prompt: &[u32], target: &[u32], expert: Option<usize>) {
        let (start, row) = (self.ids.len(), self.rows.len() as u32);
        let read = target.len().saturating_sub(1);
        self.ids.extend_from_slice(prompt);
        self.ids.extend_from_slice(&target[..read]);
        for (i, &id) in target.iter().enumerate() {
            // A target without a prompt begins with a token that nothing predicts.
            if let Some(at) = (start + prompt.len() + i).checked_sub(1).filter(|&at| at >= start) {
                self.targets.push(Target { at: at as u32, id, row });
            }
        }
        self.rows.push(Sequence { start, len: self.ids.len() - start, expert, ..Sequence::default() });
    }

    /// The packed tokens.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Whose tokens they are.
    pub fn rows(&self) -> SequenceBatch {
        SequenceBatch::new(self.rows.iter().cloned())
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The tokens to be predicted.
    pub fn targets(&self) -> &[Target] {
        &self.targets
    }

    /// Lets `change` set what a row carries besides its tokens, as its weights.
    pub fn for_each_row(&mut self, change: impl FnMut(&mut Sequence)) {
        self.rows.iter_mut().for_each(change);
    }

    /// The hidden states, `[targets, d]`, that predict the targets, out of all, `[tokens, d]`.
    pub fn predicting(&self, h: &Tensor) -> Result<Tensor> {
        h.index_select(&self.predicting_places(h.device())?, 0)
    }

    /// The places of those among the packed tokens.
    pub(crate) fn predicting_places(&self, device: &Device) -> Result<Tensor> {
        let at: Vec<u32> = self.targets.iter().map(|t| t.at).collect();
        Tensor::from_vec(at, self.targets.len(), device)
    }

    /// Whose targets are whose, where nothing but what predicts them stands packed. Their tokens are no longer neighbours
    /// in their sequence, and a row's position says nothing of them.
    pub fn target_batch(&self) -> SequenceBatch {
        let mut counts = vec![0; self.rows.len()];
        self.targets.iter().for_each(|target| counts[target.row as usize] += 1);
        let mut start = 0;
        SequenceBatch::new(self.rows.iter().zip(counts).map(|(row, len)| {
            let row = Sequence { start, len, ..row.clone() };
            start += len;
            row
        }))
    }

    /// The targets' tokens.
    pub fn target_ids(&self) -> Vec<u32> {
        self.targets.iter().map(|t| t.id).collect()
    }
}

impl Base {
    /// The negative log-likelihood of every target: `[targets]`. To be read and not differentiated.
    pub fn nll(&self, batch: &Packed, patches: &Patches) -> Result<Tensor> {
        let h = self.hidden(batch.ids(), &self.plan(batch.rows()), patches)?;
        let h = self.last_norm(&batch.predicting(&h)?)?;
        self.head().nll(&h, &batch.target_ids(), HeadPatch::of(patches, &batch.target_batch()))
    }

    /// The same for patches that look at one token at a time, with nothing made of the last layer that predicts no
    /// target.
    pub fn nll_by_token(&self, batch: &Packed, patches: &Patches) -> Result<Tensor> {
        let h = self.hidden(batch.ids(), &self.plan_of_targets(batch)?, patches)?;
        let h = self.last_norm(&h)?;
        self.head().nll(&h, &batch.target_ids(), HeadPatch::of(patches, &batch.target_batch()))
    }
}
