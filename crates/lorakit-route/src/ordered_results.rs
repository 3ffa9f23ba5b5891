//! Results of parallel work, whose first error is the first in order.

use rayon::prelude::*;

/// All values, or the first error in order. Collected into a `Result` directly, the error would be that of whichever thread
/// failed first: another one in each run.
pub(crate) fn ordered_results<T: Send, E: Send>(
    results: impl IndexedParallelIterator<Item = Result<T, E>>,
) -> Result<Vec<T>, E> {
    results.collect::<Vec<_>>().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_in_order_is_returned_whichever_thread_fails_first() {
        for _ in 0..100 {
            let results = (0..1000).into_par_iter().map(|index| if index % 7 == 3 { Err(index) } else { Ok(index) });
            assert_eq!(ordered_results(results), Err(3));
        }
        let all = (0..1000).into_par_iter().map(Ok::<usize, ()>);
        assert_eq!(ordered_results(all), Ok((0..1000).collect()));
    }
}
