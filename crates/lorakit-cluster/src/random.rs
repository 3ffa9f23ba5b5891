//! Random clusters, the baseline that a similarity has to beat.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::experts::sorted;
use crate::kmeans::check_k;
use crate::{Partition, Result};

/// Assigns each expert to one of `k` clusters uniformly at random, none of them empty: k experts, drawn without
/// replacement, take one cluster each, and every other expert takes any.
///
/// The result depends on the set of names, k and the seed alone.
///
/// # Errors
/// If a name is given twice or there are fewer than two; if k is 0 or more than the experts.
pub fn random(names: impl IntoIterator<Item = String>, k: usize, seed: u64) -> Result<Partition> {
    let names = sorted(names)?;
    check_k(k, names.len())?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut order: Vec<usize> = (0..names.len()).collect();
    order.shuffle(&mut rng);
    let mut labels = vec![0; names.len()];
    for (turn, expert) in order.into_iter().enumerate() {
        labels[expert] = if turn < k { turn } else { rng.random_range(0..k) };
    }
    Ok(Partition::new(&names, &labels))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn names(n: usize) -> Vec<String> {
        (0..n).map(|at| format!("e{at:03}")).collect()
    }

    #[test]
    fn every_cluster_has_a_member_and_seeds_differ() {
        for k in [1, 2, 10, 40] {
            let partition = random(names(40), k, 3).unwrap();
            assert_eq!(partition.k(), k);
            assert_eq!(partition, random(names(40).into_iter().rev(), k, 3).unwrap());
        }
        assert_ne!(random(names(40), 10, 3).unwrap(), random(names(40), 10, 4).unwrap());
    }

    #[test]
    fn sizes_are_those_of_a_uniform_draw() {
        let sizes: Vec<usize> = random(names(4000), 4, 0).unwrap().members().iter().map(Vec::len).collect();
        assert!(sizes.iter().all(|size| (850..1150).contains(size)), "{sizes:?}");
    }

    #[test]
    fn impossible_numbers_of_clusters_are_refused() {
        assert!(random(names(3), 0, 0).is_err() && random(names(3), 4, 0).is_err());
    }
}
