//! The losses of examples without gradients, packed into as few forwards as possible.

use crate::error::Result;
use lorakit_lora::{Patches, Sequence};
use lorakit_model::{Base, ScoredRow, split_by_tokens};
use lorakit_task::Example;
use std::ops::Range;

/// The mean negative log-likelihood per target token of each example, under the expert whose index is given with it.
/// Patches must act on each token alone.
pub fn example_losses_by_token(
    base: &Base,
    patches: &Patches,
    rows: &[(usize, &Example)],
    batch_tokens: usize,
) -> Result<Vec<f64>> {
    let parallel = base.batch_parallel(batch_tokens);
    let batches = split_by_tokens(rows.iter().map(|(_, r)| r.len()), parallel.tokens());
    let batch_losses = |batch: &Range<usize>| -> Result<_> {
        let scored = rows[batch.clone()].iter().map(|(expert, row)| ScoredRow {
            tokens: &row.tokens,
            loss: &row.loss,
            row: Sequence { expert: Some(*expert), ..Sequence::default() },
        });
        Ok(base.nll_sums_by_token(scored, patches)?)
    };
    let mut losses = Vec::with_capacity(rows.len());
    parallel.run(&batches, batch_losses, |batch| {
        losses.extend(batch.iter().map(|sum| sum.mean()));
        Ok(())
    })?;
    Ok(losses)
}
