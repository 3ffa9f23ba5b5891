//! The thread pool kept awake while a token is decoded.
//!
//! A decoded token has hundreds of parallel regions of some tens of microseconds each, with as long between them: a pool's
//! threads that have gone to sleep in between wake up when a region is half over. Here each looks for work until the token
//! is done.

use rayon::Yield;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a thread looks for work in vain. What is long between two regions does not keep others from the machine.
const PATIENCE: Duration = Duration::from_micros(200);

/// Runs `op` on a thread of the pool, which would otherwise have to be woken up by each of its parallel regions, while the
/// other threads wait for those. A caller within the pool is one of several that share its threads: those are not asked to
/// wait. On a GPU, `op` stays on the caller's thread: it has no such regions, and a thread may have a CUDA stream of its own,
/// whose results another one would read before they are there.
pub(crate) fn with_awake_threads<R: Send>(on_cpu: bool, op: impl FnOnce() -> R + Send) -> R {
    if !on_cpu || rayon::current_thread_index().is_some() {
        // A thread without work would take the waiting of each of the others, one within another: deeper than its stack
        // where there are many threads.
        return op();
    }
    let is_done = &AtomicBool::new(false);
    rayon::scope(|scope| {
        let own = rayon::current_thread_index();
        // The thread that `op` runs on has an end to wait for, and must not wait for itself.
        let help = move || {
            if rayon::current_thread_index() != own {
                look_for_work(is_done)
            }
        };
        (1..rayon::current_num_threads()).for_each(|_| scope.spawn(move |_| help()));
        let _done = Done(is_done);
        op()
    })
}

/// Executes what other threads share until `is_done`, or there was nothing for some time: a thread that waits for another
/// one's work may have got here.
fn look_for_work(is_done: &AtomicBool) {
    let mut idle_since = None;
    while !is_done.load(Ordering::Relaxed) {
        if rayon::yield_now() == Some(Yield::Executed) {
            idle_since = None;
            continue;
        }
        if idle_since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            return;
        }
        std::hint::spin_loop();
    }
}

/// Says that the work is done, also where it panics.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rayon::prelude::*;
    use std::sync::Barrier;

    /// Within each other and beside each other, from outside the pool and within it, with regions of their own.
    #[test]
    fn results_come_back_and_threads_that_wait_for_each_other_go_on() {
        let sum = || (0..1000u64).into_par_iter().map(|i| i * i).sum::<u64>();
        let expected = (0..1000u64).map(|i| i * i).sum::<u64>();
        let nested = || with_awake_threads(true, || with_awake_threads(true, sum) + with_awake_threads(true, sum));
        let sums: Vec<Option<u64>> = std::thread::scope(|scope| {
            let callers: Vec<_> = (0..50).map(|_| scope.spawn(nested)).collect();
            callers.into_iter().map(|caller| caller.join().ok()).collect()
        });
        assert_eq!(sums, vec![Some(2 * expected); 50]);
        let sums: Vec<u64> = (0..50).into_par_iter().map(|_| nested()).collect();
        assert_eq!(sums, vec![2 * expected; 50]);
    }

    #[test]
    fn a_caller_within_the_pool_leaves_no_waiting_to_others() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build();
        let pending = pool.map(|pool| {
            // The other thread is busy, so that what is left to it stays where it is.
            let barrier = Barrier::new(2);
            let caller = || {
                barrier.wait();
                let pending = with_awake_threads(true, || pool.current_thread_has_pending_tasks());
                barrier.wait();
                pending
            };
            let other = || {
                barrier.wait();
                barrier.wait();
            };
            pool.join(caller, other).0
        });
        assert!(pending.is_ok_and(|pending| pending == Some(false)));
    }

    #[test]
    fn work_of_a_gpu_stays_on_the_thread_whose_stream_it_uses() {
        let caller = std::thread::current().id();
        assert_eq!(with_awake_threads(false, || std::thread::current().id()), caller);
    }

    #[test]
    fn a_panic_ends_the_waiting() {
        assert!(std::panic::catch_unwind(|| with_awake_threads(true, || panic!("as a test"))).is_err());
    }
}
