//! The losses of rows without their gradients, packed into as few forwards as fit.

use anyhow::Result;
use lorakit_lora::Patches;
use lorakit_model::{Base, Packed};
use lorakit_task::Example;
use std::ops::Range;

/// Splits rows of the given lengths, in order, into ranges of at most `limit` tokens; a longer row stands alone.
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

/// The mean negative log-likelihood per target token of each row, under the expert named with it, for patches that look
/// at one token at a time.
pub fn example_losses(
    base: &Base,
    patches: &Patches,
    rows: &[(usize, &Example)],
    batch_tokens: usize,
) -> Result<Vec<f64>> {
    let lanes = base.batch_parallel(batch_tokens);
    let batches = split_by_tokens(rows.iter().map(|(_, r)| r.prompt.len() + r.target.len()), lanes.tokens());
    let mut losses = Vec::with_capacity(rows.len());
    let of_batch = |batch: &Range<usize>| batch_losses(base, patches, &rows[batch.clone()]);
    lanes.run(&batches, of_batch, |batch| {
        losses.extend(batch);
        Ok(())
    })?;
    Ok(losses)
}

/// The same of rows that go through the base together.
fn batch_losses(base: &Base, patches: &Patches, rows: &[(usize, &Example)]) -> Result<Vec<f64>> {
    let mut packed = Packed::default();
    rows.iter().for_each(|(expert, row)| packed.push(&row.prompt, &row.target, Some(*expert)));
    let nll: Vec<f32> = base.nll_by_token(&packed, patches)?.to_vec1()?;
    let mut sums = vec![(0.0f64, 0usize); rows.len()];
    for (target, loss) in packed.targets().iter().zip(nll) {
        let (sum, count) = &mut sums[target.row as usize];
        *sum += f64::from(loss);
        *count += 1;
    }
    Ok(sums.into_iter().map(|(sum, count)| sum / count.max(1) as f64).collect())
}
