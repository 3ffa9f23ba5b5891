//! Batches of at most a given number of tokens.

use crate::error::Result;
use lorakit_model::BatchParallel;

/// Computes something of each item, of the given `lengths`, in batches of at most the tokens that `parallel` takes at once:
/// `score` receives a batch's indices and returns one result for each. After each batch, `done` receives the number of
/// finished items.
///
/// # Errors
/// Those of `score`.
pub(crate) fn run_token_batches<T: Clone + Default + Send>(
    parallel: &BatchParallel,
    lengths: &[usize],
    score: impl Fn(&[usize]) -> Result<Vec<T>> + Sync,
    done: &mut (dyn FnMut(usize) + Send),
) -> Result<Vec<T>> {
    let (mut results, mut finished) = (vec![T::default(); lengths.len()], 0);
    let score = |batch: &Vec<usize>| -> Result<_> { Ok((batch.clone(), score(batch)?)) };
    parallel.run(&token_batches(lengths, parallel.tokens()), score, |(batch, found)| {
        finished += batch.len();
        batch.into_iter().zip(found).for_each(|(index, found)| results[index] = found);
        done(finished);
        Ok(())
    })?;
    Ok(results)
}

/// Groups the indices of `lengths` into batches whose lengths sum to at most `budget`.
///
/// The longest come first: what does not fit into memory fails at once, not after an hour, and estimates of the remaining
/// time are pessimistic. Anything longer than the budget is a batch of its own. Since nothing is padded, mixing lengths in
/// a batch costs nothing.
fn token_batches(lengths: &[usize], budget: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for index in order {
        match batches.last_mut() {
            Some(batch) if lengths[index] <= room => batch.push(index),
            _ => {
                room = budget.max(lengths[index]);
                batches.push(vec![index]);
            }
        }
        room -= lengths[index];
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_to_the_budget_and_are_complete() {
        let batches = token_batches(&[3, 9, 1, 4, 12, 4], 10);
        assert_eq!(batches, [vec![4], vec![1], vec![3, 5], vec![0, 2]]);
        assert_eq!(token_batches(&[], 10), Vec::<Vec<usize>>::new());
        assert_eq!(token_batches(&[0, 0], 0), [vec![0, 1]]);
    }
}
