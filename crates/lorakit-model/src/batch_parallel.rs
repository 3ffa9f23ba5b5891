//! Lanes: how the batches of a base share a CPU's threads.
//!
//! Over a large base the threads share every op. Over a small one an op ends before they have met, and so each thread
//! takes batches of its own through all layers, so small that what a layer makes of one stays in its core's cache.

use crate::base::Base;
use rayon::prelude::*;

/// Values of a layer's weights up to which a base is small: they fit the second cache of a core.
const SMALL_LAYER: usize = 1 << 18;

/// Tokens of a batch that one thread takes through a small base.
const LANE_TOKENS: usize = 256;

/// How the batches of a base are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchParallel {
    tokens: usize,
    side_by_side: bool,
}

impl Base {
    /// How batches are taken of which none shall have more than `most` tokens.
    pub fn batch_parallel(&self, most: usize) -> BatchParallel {
        let values = self.sites().iter().map(|site| site.input * site.output()).sum::<usize>() / self.layers().max(1);
        let side_by_side = values <= SMALL_LAYER && self.device().is_cpu();
        BatchParallel { tokens: if side_by_side { most.min(LANE_TOKENS) } else { most }, side_by_side }
    }
}

impl BatchParallel {
    /// Tokens of a batch at most, where no single row has more.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Batches that are worked on, or whose results are held, at a time.
    pub fn in_flight(&self) -> usize {
        if self.side_by_side { 2 * rayon::current_num_threads() } else { 1 }
    }

    /// Gives what `work` makes of each batch to `take`, in the order of the batches whatever the number of threads.
    ///
    /// # Errors
    /// The first of `work` or `take`, after which no further round of batches is begun.
    pub fn run<B: Sync, T: Send, E: Send>(
        &self,
        batches: &[B],
        work: impl Fn(&B) -> Result<T, E> + Sync,
        mut take: impl FnMut(T) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.side_by_side {
            return batches.iter().try_for_each(|batch| take(work(batch)?));
        }
        for round in batches.chunks(self.in_flight()) {
            let made: Vec<Result<T, E>> = round.par_iter().with_max_len(1).map(&work).collect();
            made.into_iter().try_for_each(|made| take(made?))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use anyhow::bail;

    #[test]
    fn results_come_in_the_order_of_the_batches_up_to_the_first_error() {
        for side_by_side in [false, true] {
            let lanes = BatchParallel { tokens: 1, side_by_side };
            let bad = lanes.in_flight() + 1;
            let batches: Vec<usize> = (0..3 * bad).collect();
            let mut taken = Vec::new();
            let mut take = |result| {
                taken.push(result);
                Ok(())
            };
            lanes.run(&batches, |&batch| Ok(batch * batch), &mut take).unwrap();
            let work = |&batch: &usize| if batch == bad { bail!("batch {batch}") } else { Ok(batch) };
            let error = lanes.run(&batches, work, &mut take).unwrap_err();
            let (squares, until_the_error) = taken.split_at(batches.len());
            assert!(squares.iter().copied().eq(batches.iter().map(|batch| batch * batch)));
            assert_eq!(until_the_error, &batches[..bad]);
            assert_eq!(error.to_string(), format!("batch {bad}"));
        }
    }
}
