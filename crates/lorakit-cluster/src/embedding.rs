//! Clusters by embeddings that someone else made, of each expert's text for example: the paper's other baseline.

use crate::experts::sorted;
use crate::kmeans::{check_k, kmeans};
use crate::{Error, Partition, Result};

/// Clusters experts by k-means on one vector each, all of one length, taken as they are: normalise them before
/// where length should not count.
///
/// # Errors
/// If a name is given twice or there are fewer than two experts; if the vectors' lengths differ, are zero, or hold
/// values that are not finite; if k is 0 or more than the vectors that differ.
pub fn embedding(vectors: impl IntoIterator<Item = (String, Vec<f32>)>, k: usize, seed: u64) -> Result<Partition> {
    let mut vectors: Vec<(String, Vec<f32>)> = vectors.into_iter().collect();
    vectors.sort_by(|left, right| left.0.cmp(&right.0));
    let names = sorted(vectors.iter().map(|(name, _)| name.clone()))?;
    check_k(k, names.len())?;
    check(&vectors)?;
    let points: Vec<Vec<f64>> =
        vectors.iter().map(|(_, vector)| vector.iter().copied().map(f64::from).collect()).collect();
    Ok(Partition::new(&names, &kmeans(&points, k, seed)?))
}

fn check(vectors: &[(String, Vec<f32>)]) -> Result<()> {
    let expected = vectors[0].1.len().max(1);
    for (expert, vector) in vectors {
        if vector.len() != expected {
            return Err(Error::EmbeddingLength { expert: expert.clone(), found: vector.len(), expected });
        }
        if vector.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite { what: "the embedding of expert", name: expert.clone() });
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
    fn near_vectors_share_a_cluster() {
        let vectors = named(&[&[0.0, 1.0], &[5.0, 5.0], &[0.1, 1.0], &[5.0, 5.1], &[0.0, 1.1]]);
        assert_eq!(embedding(vectors, 2, 0).unwrap().labels(), [0, 1, 0, 1, 0]);
    }

    #[test]
    fn vectors_that_do_not_fit_are_blamed_on_their_expert() {
        assert!(matches!(
            embedding(named(&[&[0.0, 1.0], &[5.0]]), 1, 0),
            Err(Error::EmbeddingLength { expert, found: 1, expected: 2 }) if expert == "e1"
        ));
        assert!(
            matches!(embedding(named(&[&[0.0], &[f32::NAN]]), 1, 0), Err(Error::NotFinite { name, .. }) if name == "e1")
        );
        assert!(embedding(named(&[&[], &[]]), 1, 0).is_err());
    }
}
