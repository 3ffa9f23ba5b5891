//! How the batches of a base share the threads of a CPU.
//!
//! Over a large base the threads share every op. Over a small one an op would end before all threads had started, so each
//! thread takes batches of its own through all layers, small enough that a layer's values stay in the core's cache.

use crate::base::Base;
use rayon::prelude::*;

/// A base is small up to this many weights per layer: they fit the L2 cache of a core.
const SMALL_LAYER: usize = 1 << 18;

/// Largest batch, in tokens, that one thread takes through a small base.
const SMALL_BATCH: usize = 256;

/// How the batches of a base are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchParallel {
    max_tokens: usize,
    /// Whether each thread takes batches of its own.
    parallel: bool,
}

impl Base {
    /// How batches of at most `max_tokens` tokens are run.
    pub fn batch_parallel(&self, max_tokens: usize) -> BatchParallel {
        let values = self.sites().iter().map(|site| site.input * site.output()).sum::<usize>() / self.layers().max(1);
        let parallel = values <= SMALL_LAYER && self.device().is_cpu();
        BatchParallel { max_tokens: if parallel { max_tokens.min(SMALL_BATCH) } else { max_tokens }, parallel }
    }
}

impl BatchParallel {
    /// The most tokens of a batch, unless a single sequence has more.
    pub fn tokens(&self) -> usize {
        self.max_tokens
    }

    /// The number of threads that take batches of their own; 1 where all share each op.
    pub fn lanes(&self) -> usize {
        if self.parallel { rayon::current_num_threads() } else { 1 }
    }

    /// The number of batches whose results are held at a time.
    pub fn in_flight(&self) -> usize {
        if self.parallel { 2 * self.lanes() } else { 1 }
    }

    /// Calls `take` with the result of `work` for each batch, in the order of the batches on any number of threads.
    ///
    /// # Errors
    /// The first error of `work` or `take`; no batches are started after it.
    pub fn run<B: Sync, T: Send, E: Send>(
        &self,
        batches: &[B],
        work: impl Fn(&B) -> Result<T, E> + Sync,
        mut take: impl FnMut(T) -> Result<(), E>,
    ) -> Result<(), E> {
        if !self.parallel {
            return batches.iter().try_for_each(|batch| take(work(batch)?));
        }
        for round in batches.chunks(self.in_flight()) {
            let results: Vec<Result<T, E>> = round.par_iter().with_max_len(1).map(&work).collect();
            results.into_iter().try_for_each(|result| take(result?))?;
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
        for parallel in [false, true] {
            let run = BatchParallel { max_tokens: 1, parallel };
            let bad = run.in_flight() + 1;
            let batches: Vec<usize> = (0..3 * bad).collect();
            let mut taken = Vec::new();
            let mut take = |result| {
                taken.push(result);
                Ok(())
            };
            run.run(&batches, |&batch| Ok(batch * batch), &mut take).unwrap();
            let work = |&batch: &usize| if batch == bad { bail!("batch {batch}") } else { Ok(batch) };
            let error = run.run(&batches, work, &mut take).unwrap_err();
            let (squares, until_the_error) = taken.split_at(batches.len());
            assert!(squares.iter().copied().eq(batches.iter().map(|batch| batch * batch)));
            assert_eq!(until_the_error, &batches[..bad]);
            assert_eq!(error.to_string(), format!("batch {bad}"));
        }
    }
}
