//! The adjusted Rand index: the agreement of two clusterings, corrected for chance.

use std::collections::BTreeMap;

use crate::error::{ClusterError, Result};

/// The adjusted Rand index of two labelings of the same points (Hubert and Arabie, 1985): 1 if they are the same partition,
/// about 0 if they agree as often as chance.
///
/// `(S - E) / (M - E)`, where S is the number of pairs of points that are together in both labelings, L and R those
/// together in either, `E = L R / (n choose 2)` and `M = (L + R) / 2`. It is 1 if M equals E: then both labelings put all
/// points together, or each alone.
///
/// # Errors
/// If the lengths differ.
pub fn adjusted_rand(left: &[usize], right: &[usize]) -> Result<f64> {
    if left.len() != right.len() {
        return Err(ClusterError::Inconsistent(format!(
            "two labelings of {} and {} points; expected the same points",
            left.len(),
            right.len()
        )));
    }
    let together = pairs(left.iter().zip(right));
    let (in_left, in_right) = (pairs(left), pairs(right));
    let all = choose_two(left.len());
    let expected = if all == 0.0 { 0.0 } else { in_left * in_right / all };
    let largest = f64::midpoint(in_left, in_right);
    Ok(if largest == expected { 1.0 } else { (together - expected) / (largest - expected) })
}

/// The number of pairs of points with the same key.
fn pairs<K: Ord>(keys: impl IntoIterator<Item = K>) -> f64 {
    let mut counts: BTreeMap<K, usize> = BTreeMap::new();
    keys.into_iter().for_each(|key| *counts.entry(key).or_default() += 1);
    counts.into_values().map(choose_two).sum()
}

fn choose_two(count: usize) -> f64 {
    count as f64 * (count as f64 - 1.0) / 2.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    /// Values of sklearn.metrics.adjusted_rand_score, four of them from its documentation.
    #[test]
    fn the_index_equals_that_of_scikit_learn() {
        for (left, right, expected) in [
            (vec![0, 0, 1, 1], vec![0, 0, 1, 1], 1.0),
            (vec![0, 0, 1, 1], vec![1, 1, 0, 0], 1.0),
            (vec![0, 0, 1, 2], vec![0, 0, 1, 1], 0.571_428_571_428_571_4),
            (vec![0, 0, 0, 0], vec![0, 1, 2, 3], 0.0),
            (vec![0, 0, 1, 1], vec![0, 1, 0, 1], -0.5),
            (vec![0, 0, 0], vec![5, 5, 5], 1.0),
        ] {
            let found = adjusted_rand(&left, &right).unwrap();
            assert!((found - expected).abs() < 1e-12, "{left:?} {right:?}: {found}");
        }
    }

    #[test]
    fn labelings_of_different_lengths_are_errors() {
        assert!(adjusted_rand(&[0], &[0, 1]).is_err());
    }
}
