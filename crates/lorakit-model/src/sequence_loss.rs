//! The losses of sequences that are packed into one forward.

use crate::base::Base;
use crate::token_batch::TokenBatch;
use crate::weights::token_precision::TokenPrecision;
use candle_core::Result;
use lorakit_lora::{Patches, Sequence};
use std::ops::Range;

/// A sequence of which some tokens are scored.
pub struct ScoredRow<'a> {
    /// The tokens.
    pub tokens: &'a [u32],
    /// Whether each has a loss.
    pub loss: &'a [bool],
    /// The expert and weights that the patches read; its place in the batch is ignored.
    pub row: Sequence,
}

/// The summed negative log-likelihood of a row's target tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct NllSum {
    /// The sum.
    pub sum: f64,
    /// The number of target tokens.
    pub tokens: usize,
}

impl NllSum {
    /// The mean per target token; 0 without target tokens.
    pub fn mean(self) -> f64 {
        self.sum / self.tokens.max(1) as f64
    }
}

/// Splits rows of the given lengths, in order, into ranges of at most `limit` tokens; a longer row is a range of its own.
pub fn split_by_tokens(lengths: impl Iterator<Item = usize>, limit: usize) -> Vec<Range<usize>> {
    let (mut ranges, mut start, mut tokens, mut end) = (Vec::new(), 0, 0, 0);
    for length in lengths {
        if end > start && tokens + length > limit {
            ranges.push(start..end);
            (start, tokens) = (end, 0);
        }
        tokens += length;
        end += 1;
    }
    if end > start {
        ranges.push(start..end);
    }
    ranges
}

impl Base {
    /// The losses of rows that share one forward. All of their tokens have this precision.
    pub fn nll_sums<'a>(
        &self,
        rows: impl Iterator<Item = ScoredRow<'a>>,
        patches: &Patches,
        precision: TokenPrecision,
    ) -> Result<Vec<NllSum>> {
        let batch = pack(rows);
        Ok(sums_by_row(&batch, &self.nll_at(&batch, patches, precision)?.to_vec1()?))
    }

    /// The exact [`Base::nll_sums`] for patches that act on each token alone, as by [`Base::nll_by_token`].
    pub fn nll_sums_by_token<'a>(
        &self,
        rows: impl Iterator<Item = ScoredRow<'a>>,
        patches: &Patches,
    ) -> Result<Vec<NllSum>> {
        let batch = pack(rows);
        Ok(sums_by_row(&batch, &self.nll_by_token(&batch, patches)?.to_vec1()?))
    }
}

/// The rows as one batch, each with its expert and weights.
fn pack<'a>(rows: impl Iterator<Item = ScoredRow<'a>>) -> TokenBatch {
    let (mut batch, mut weights) = (TokenBatch::default(), Vec::new());
    for ScoredRow { tokens, loss, row } in rows {
        batch.push_masked(tokens, loss, row.expert);
        weights.push(row.weights);
    }
    let mut weights = weights.into_iter();
    batch.for_each_sequence(|row| row.weights = weights.next().flatten());
    batch
}

/// Sums the losses `[targets]` of a batch by row, in f64.
pub fn sums_by_row(batch: &TokenBatch, nll: &[f32]) -> Vec<NllSum> {
    let mut sums = vec![NllSum::default(); batch.len()];
    for (target, loss) in batch.targets().iter().zip(nll) {
        let row = &mut sums[target.row as usize];
        row.sum += f64::from(*loss);
        row.tokens += 1;
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_at_most_the_limit_except_for_longer_rows() {
        let split = |lengths: &[usize], limit| split_by_tokens(lengths.iter().copied(), limit);
        assert_eq!(split(&[3, 4, 9, 2, 2], 7), [0..2, 2..3, 3..5]);
        assert_eq!(split(&[], 7), Vec::<Range<usize>>::new());
        assert_eq!(split(&[1, 1], 0), [0..1, 1..2]);
    }

    #[test]
    fn losses_are_summed_by_row() {
        let mut batch = TokenBatch::default();
        batch.push(&[1, 2], &[3, 4], None);
        batch.push(&[5], &[], None);
        batch.push(&[6], &[7], None);
        let means: Vec<f64> = sums_by_row(&batch, &[1.0, 2.0, 5.0]).into_iter().map(NllSum::mean).collect();
        assert_eq!(means, [1.5, 0.0, 5.0]);
    }
}
