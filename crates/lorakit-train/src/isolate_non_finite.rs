//! An expert that is not finite spoils no other expert of its batches.

use crate::error::Result;
use std::ops::Range;

/// The result of `compute` over the rows in shared batches, or in batches of one expert each if fewer experts are `not_finite`
/// then: on a GPU, experts of a batch share products in which the rows of others have factors of zero, and zero times NaN is
/// NaN. On a CPU each expert has its own products, and the result of shared batches stays.
pub(crate) fn isolate_non_finite<T>(
    compute: impl Fn(&[Range<usize>]) -> Result<T>,
    not_finite: impl Fn(&T) -> usize,
    [together, by_expert]: [Vec<Range<usize>>; 2],
) -> Result<T> {
    let first = compute(&together)?;
    if not_finite(&first) < 2 {
        return Ok(first);
    }
    let apart = compute(&by_expert)?;
    Ok(if not_finite(&apart) < not_finite(&first) { apart } else { first })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::batch_row::{BatchRow, batches, batches_by_expert};
    use lorakit_task::Example;
    use std::collections::BTreeSet;

    /// The experts that are not finite where `culprits` make all NaN that share a batch with them, as on a GPU.
    fn found(culprits: &[usize]) -> (Vec<usize>, usize) {
        let example = Example::new(&[1, 2], &[3]);
        let row = |expert: &usize| BatchRow { expert: *expert, index: 0, row: &example, dropout_key: [0; 32] };
        let rows: Vec<BatchRow> = [0, 0, 1, 2, 2, 2].iter().map(row).collect();
        let computed = std::cell::Cell::new(0);
        let compute = |batches: &[Range<usize>]| -> Result<Vec<usize>> {
            computed.set(computed.get() + 1);
            assert_eq!(batches.iter().cloned().flatten().collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5], "every row once");
            let spoiled =
                batches.iter().filter(|b| rows[(*b).clone()].iter().any(|row| culprits.contains(&row.expert)));
            Ok(spoiled
                .flat_map(|b| rows[b.clone()].iter().map(|row| row.expert))
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect())
        };
        let splits = [batches(&rows, 9), batches_by_expert(&rows, 6)];
        assert_eq!(splits[1], [0..2, 2..3, 3..5, 5..6]);
        (isolate_non_finite(compute, Vec::len, splits).unwrap(), computed.get())
    }

    #[test]
    fn an_expert_that_is_not_finite_spoils_no_other() {
        assert_eq!(found(&[]), (vec![], 1));
        assert_eq!(found(&[1]), (vec![1], 2));
        assert_eq!(found(&[2]), (vec![2], 1), "it shared no batch");
        assert_eq!(found(&[0, 2]), (vec![0, 2], 2));
    }
}
