//! Random clusters, the baseline for every other method.

use lorakit_format::rng::CounterRng;

use crate::error::Result;
use crate::expert_set::sorted_names;
use crate::kmeans::check_k;
use crate::partition::Partition;

/// Assigns each expert to one of `k` clusters at random, none of them empty: k experts, drawn without replacement, get one
/// cluster each, and every other expert gets any cluster, uniformly.
///
/// The result depends only on the set of names, k and the seed.
///
/// # Errors
/// If a name is given twice or there are fewer than two; if k is 0 or exceeds the number of experts.
pub fn random_clusters(names: impl IntoIterator<Item = String>, k: usize, seed: u64) -> Result<Partition> {
    let names = sorted_names(names)?;
    check_k(k, names.len())?;
    let mut rng = CounterRng::seeded(seed, 0);
    let mut labels = vec![0; names.len()];
    for (position, expert) in rng.shuffle_of_rand(names.len() as u32).into_iter().enumerate() {
        labels[expert] = if position < k { position } else { rng.random_range_of_rand(k as u32) as usize };
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
    fn no_cluster_is_empty_and_seeds_differ() {
        for k in [1, 2, 10, 40] {
            let partition = random_clusters(names(40), k, 3).unwrap();
            assert_eq!(partition.k(), k);
            assert_eq!(partition, random_clusters(names(40).into_iter().rev(), k, 3).unwrap());
        }
        assert_ne!(random_clusters(names(40), 10, 3).unwrap(), random_clusters(names(40), 10, 4).unwrap());
    }

    /// Clusters on disk came of these draws.
    #[test]
    fn clusters_of_a_seed_stay_as_they_were() {
        let labels = |seed| random_clusters(names(20), 4, seed).unwrap().labels().to_vec();
        assert_eq!(labels(0), [3, 0, 0, 2, 1, 1, 1, 0, 3, 1, 0, 3, 2, 1, 2, 0, 0, 2, 0, 1]);
        assert_eq!(labels(7), [0, 1, 2, 1, 3, 0, 2, 0, 2, 0, 3, 0, 1, 3, 1, 1, 0, 2, 3, 0]);
    }

    #[test]
    fn sizes_are_about_equal() {
        let sizes: Vec<usize> = random_clusters(names(4000), 4, 0).unwrap().members().iter().map(Vec::len).collect();
        assert!(sizes.iter().all(|size| (850..1150).contains(size)), "{sizes:?}");
    }

    #[test]
    fn impossible_numbers_of_clusters_are_errors() {
        assert!(random_clusters(names(3), 0, 0).is_err() && random_clusters(names(3), 4, 0).is_err());
    }
}
