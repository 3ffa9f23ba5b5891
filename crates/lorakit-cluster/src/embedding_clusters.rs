//! Clusters by given embeddings, for example of each expert's training text: the other baseline of the paper.

use crate::error::{ClusterError, Result};
use crate::expert_set::sorted_names;
use crate::kmeans::{check_k, kmeans};
use crate::partition::Partition;

/// Clusters experts by k-means on one vector for each, all of one length. They are not normalized here.
///
/// # Errors
/// If a name is given twice or there are fewer than two experts; if the vectors are empty, differ in length or have values
/// that are not finite; if k is 0 or exceeds the number of distinct vectors.
pub fn embedding_clusters(
    vectors: impl IntoIterator<Item = (String, Vec<f32>)>,
    k: usize,
    seed: u64,
) -> Result<Partition> {
    let mut vectors: Vec<(String, Vec<f32>)> = vectors.into_iter().collect();
    vectors.sort_by(|left, right| left.0.cmp(&right.0));
    let names = sorted_names(vectors.iter().map(|(name, _)| name.clone()))?;
    check_k(k, names.len())?;
    check(&vectors)?;
    let points: Vec<Vec<f64>> =
        vectors.iter().map(|(_, vector)| vector.iter().copied().map(f64::from).collect()).collect();
    Ok(Partition::new(&names, &kmeans(&points, k, seed)?))
}

fn check(vectors: &[(String, Vec<f32>)]) -> Result<()> {
    let expected = vectors[0].1.len();
    for (name, vector) in vectors {
        if vector.is_empty() {
            return Err(ClusterError::EmptyEmbedding(name.clone()));
        }
        if vector.len() != expected {
            return Err(ClusterError::EmbeddingLength { name: name.clone(), found: vector.len(), expected });
        }
        if vector.iter().any(|value| !value.is_finite()) {
            return Err(ClusterError::NotFinite { what: "the embedding of", name: name.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn named(vectors: &[&[f32]]) -> Vec<(String, Vec<f32>)> {
        vectors.iter().enumerate().map(|(at, vector)| (format!("e{at}"), vector.to_vec())).collect()
    }

    #[test]
    fn near_vectors_are_in_one_cluster() {
        let vectors = named(&[&[0.0, 1.0], &[5.0, 5.0], &[0.1, 1.0], &[5.0, 5.1], &[0.0, 1.1]]);
        assert_eq!(embedding_clusters(vectors, 2, 0).unwrap().labels(), [0, 1, 0, 1, 0]);
    }

    #[test]
    fn vectors_that_do_not_fit_are_errors_that_name_it() {
        assert!(matches!(
            embedding_clusters(named(&[&[0.0, 1.0], &[5.0]]), 1, 0),
            Err(ClusterError::EmbeddingLength { name, found: 1, expected: 2 }) if name == "e1"
        ));
        assert!(
            matches!(embedding_clusters(named(&[&[0.0], &[f32::NAN]]), 1, 0), Err(ClusterError::NotFinite { name, .. }) if name == "e1")
        );
        let empty = embedding_clusters(named(&[&[], &[]]), 1, 0).unwrap_err().to_string();
        assert_eq!(empty, "the embedding of `e0` has no values; expected at least one");
    }
}
