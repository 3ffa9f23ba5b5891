//! The number of clusters: the silhouette curve, and the k that it suggests.

use serde::Serialize;

use crate::error::{ClusterError, Result};
use crate::mbc::MbcEmbedding;
use crate::silhouette::mean_silhouette;

/// A mean silhouette below this means that clusters are hardly separated. Kaufman and Rousseeuw (1990) call up to 0.25 "no
/// substantial structure", but in low dimensions: in millions of dimensions all distances are near 1.
const WEAK_SILHOUETTE: f64 = 0.05;

/// The mean silhouette for one number of clusters.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CurvePoint {
    /// The number of clusters.
    pub k: usize,
    /// The mean silhouette of all experts.
    pub silhouette: f64,
}

/// A suggested number of clusters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SuggestedK {
    /// The number of clusters.
    pub k: usize,
    /// The reason, as the rest of a sentence.
    pub reason: String,
}

/// The mean silhouette of the clusters for every k from 2 to `largest`, less than the number of experts and at most that of
/// distinct ones.
///
/// # Errors
/// If k-means fails for another reason than too few distinct experts.
pub fn silhouette_curve(embedded: &MbcEmbedding, largest: usize) -> Result<Vec<CurvePoint>> {
    let last = largest.min(embedded.similarity.names().len() - 1);
    let mut curve = Vec::new();
    for k in 2..=last {
        match embedded.partition(k) {
            Ok(partition) => {
                curve.push(CurvePoint { k, silhouette: mean_silhouette(&embedded.similarity, &partition) })
            }
            Err(ClusterError::TooFewDistinct { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(curve)
}

/// The k with the largest mean silhouette, the smallest of equals; None for an empty curve.
pub fn suggest_k(curve: &[CurvePoint]) -> Option<SuggestedK> {
    let better = |best: CurvePoint, next: CurvePoint| if next.silhouette > best.silhouette { next } else { best };
    let best = curve.iter().copied().reduce(better)?;
    let (first, last) = (curve.first()?.k, curve.last()?.k);
    let second = curve.iter().copied().filter(|point| point.k != best.k).reduce(better);
    let runner_up =
        second.map_or_else(String::new, |next| format!(", before {:.3} at k = {}", next.silhouette, next.k));
    let caution = if best.silhouette < WEAK_SILHOUETTE {
        "; a value this low means that no number of clusters separates these experts well"
    } else {
        ""
    };
    let reason = format!(
        "its mean silhouette, {:.3}, is the largest of k = {first} to {last}{runner_up}{caution}",
        best.silhouette
    );
    Some(SuggestedK { k: best.k, reason })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn the_reason_says_if_no_k_separates_the_experts() {
        let curve = [CurvePoint { k: 2, silhouette: 0.01 }, CurvePoint { k: 3, silhouette: 0.01 }];
        let suggestion = suggest_k(&curve).unwrap();
        assert_eq!(suggestion.k, 2);
        assert!(suggestion.reason.contains("no number of clusters separates"));
    }
}
