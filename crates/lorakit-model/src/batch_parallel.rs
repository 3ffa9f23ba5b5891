//! How the batches of a base share the threads of a CPU.
//!
//! Over a large base the threads share every op. Over a small one an op would end before all threads had started, so each
//! thread takes batches of its own through all layers, small enough that a layer's values stay in the core's cache.

use crate::base::Base;
use rayon::ScopeFifo;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
    pub fn workers(&self) -> usize {
        if self.parallel { rayon::current_num_threads() } else { 1 }
    }

    /// The number of batches whose results are held at a time.
    pub fn in_flight(&self) -> usize {
        if self.parallel { 2 * self.workers() } else { 1 }
    }

    /// Calls `take` with the result of `work` for each batch, in the order of the batches on any number of threads.
    ///
    /// # Errors
    /// The first error of `work` or `take`; no batches are started after it.
    pub fn run<B: Sync, T: Send, E: Send>(
        &self,
        batches: &[B],
        work: impl Fn(&B) -> Result<T, E> + Sync,
        mut take: impl FnMut(T) -> Result<(), E> + Send,
    ) -> Result<(), E> {
        if !self.parallel {
            return batches.iter().try_for_each(|batch| take(work(batch)?));
        }
        let started = self.in_flight().min(batches.len());
        let ordered = OrderedBatches {
            batches,
            work,
            finished: Mutex::default(),
            consumer: Mutex::new(Consumer { take, taken: 0, started, result: Ok(()) }),
        };
        rayon::scope_fifo(|scope| (0..started).for_each(|index| ordered.start(index, scope)));
        ordered.consumer.into_inner().unwrap_or_else(PoisonError::into_inner).result
    }
}

/// Batches whose results are taken in their order while others are computed.
struct OrderedBatches<'a, B, W, T, E, K> {
    batches: &'a [B],
    work: W,
    /// Results that have not been taken, by batch.
    finished: Mutex<BTreeMap<usize, Result<T, E>>>,
    consumer: Mutex<Consumer<E, K>>,
}

/// Where results go, which one thread at a time takes there.
struct Consumer<E, K> {
    take: K,
    /// The number of results that were taken, and of batches that were started.
    taken: usize,
    started: usize,
    result: Result<(), E>,
}

impl<B, W, T, E, K> OrderedBatches<'_, B, W, T, E, K>
where
    B: Sync,
    W: Fn(&B) -> Result<T, E> + Sync,
    T: Send,
    E: Send,
    K: FnMut(T) -> Result<(), E> + Send,
{
    /// Computes batch `index`. Each batch whose result is taken makes room for another one to start.
    fn start<'s>(&'s self, index: usize, scope: &ScopeFifo<'s>) {
        scope.spawn_fifo(move |scope| {
            let result = (self.work)(&self.batches[index]);
            self.finished().insert(index, result);
            self.take_finished(scope);
        });
    }

    /// Takes the results that are next in order. If another thread does so, it takes those that are there now too.
    fn take_finished<'s>(&'s self, scope: &ScopeFifo<'s>) {
        // Nothing waits for a lock while it is held across `take`, whose own parallel regions may run other batches.
        while let Ok(mut consumer) = self.consumer.try_lock() {
            let Consumer { take, taken, started, result } = &mut *consumer;
            while result.is_ok() {
                let next = self.finished().remove(taken);
                let Some(next) = next else { break };
                *result = next.and_then(&mut *take);
                *taken += 1;
                if result.is_ok() && *started < self.batches.len() {
                    self.start(*started, scope);
                    *started += 1;
                }
            }
            let (taken, is_ok) = (*taken, result.is_ok());
            drop(consumer);
            // What was finished before the lock was free again has found it taken.
            if !is_ok || !self.finished().contains_key(&taken) {
                return;
            }
        }
    }

    fn finished(&self) -> MutexGuard<'_, BTreeMap<usize, Result<T, E>>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use anyhow::bail;
    use rayon::prelude::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn results_come_in_the_order_of_the_batches_up_to_the_first_error() {
        for parallel in [false, true] {
            let run = BatchParallel { max_tokens: 1, parallel };
            let bad = run.in_flight() + 1;
            let batches: Vec<usize> = (0..3 * bad).collect();
            let mut taken = Vec::new();
            let mut take = |result| {
                // What is taken may be worked on in parallel too, while other batches end.
                taken.push((0..1000).into_par_iter().map(|_| 0).sum::<usize>() + result);
                Ok(())
            };
            // Batches of different length, with parallel regions of their own.
            let square = |&batch: &usize| Ok((0..batch).into_par_iter().map(|_| batch).sum::<usize>());
            run.run(&batches, square, &mut take).unwrap();
            let work = |&batch: &usize| if batch == bad { bail!("batch {batch}") } else { Ok(batch) };
            let error = run.run(&batches, work, &mut take).unwrap_err();
            let (squares, until_the_error) = taken.split_at(batches.len());
            assert!(squares.iter().copied().eq(batches.iter().map(|batch| batch * batch)));
            assert_eq!(until_the_error, &batches[..bad]);
            assert_eq!(error.to_string(), format!("batch {bad}"));
        }
    }

    #[test]
    fn no_more_batches_are_started_than_may_be_held() {
        let run = BatchParallel { max_tokens: 1, parallel: true };
        let (started, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let batches: Vec<usize> = (0..20 * run.in_flight()).collect();
        let work = |_: &usize| {
            let held = started.fetch_add(1, Ordering::SeqCst) + 1 - taken.load(Ordering::SeqCst);
            if held > run.in_flight() { bail!("{held} batches are held") } else { Ok(()) }
        };
        let take = |()| {
            taken.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        run.run(&batches, work, take).unwrap();
        assert_eq!(taken.into_inner(), batches.len());
    }
}
