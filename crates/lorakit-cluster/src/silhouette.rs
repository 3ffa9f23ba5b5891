//! Silhouettes: how much closer an expert is to its own cluster than to the nearest other one (Rousseeuw, 1987).

use rayon::prelude::*;

use crate::partition::Partition;
use crate::similarity::Similarity;

/// The silhouette of each expert, in [-1, 1]: `(b - a) / max(a, b)`, where a is its mean distance to the other members of its
/// cluster and b the smallest mean distance to another cluster. The distance is 1 - cosine. An expert alone in its cluster
/// has 0, as have all if there is only one cluster.
///
/// The partition and the similarity must be of the same experts.
pub fn silhouettes(similarity: &Similarity, partition: &Partition) -> Vec<f64> {
    let members = partition.members();
    let mean_distance = |expert: usize, cluster: &[usize]| {
        let others = cluster.iter().filter(|other| **other != expert);
        let (sum, count) =
            others.fold((0.0, 0), |(sum, count), other| (sum + 1.0 - similarity.at(expert, *other), count + 1));
        (count > 0).then(|| sum / f64::from(count))
    };
    let silhouette = |(expert, own): (usize, &usize)| {
        let rest = members.iter().enumerate().filter(|(label, _)| label != own);
        let next = rest.filter_map(|(_, cluster)| mean_distance(expert, cluster)).reduce(f64::min);
        match (mean_distance(expert, &members[*own]), next) {
            (Some(a), Some(b)) if a.max(b) > 0.0 => (b - a) / a.max(b),
            _ => 0.0,
        }
    };
    partition.labels().par_iter().enumerate().map(silhouette).collect()
}

/// The mean of [`silhouettes`].
pub(crate) fn mean_silhouette(similarity: &Similarity, partition: &Partition) -> f64 {
    let all = silhouettes(similarity, partition);
    all.iter().sum::<f64>() / all.len() as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::gram::gram_matrix::GramMatrix;

    #[test]
    fn silhouettes_equal_those_computed_by_hand() {
        // Angles 0, 60 and 90 degrees: distances 0.5 (0-1), 1 - cos 30 (1-2) and 1 (0-2).
        let points: Vec<Vec<f64>> =
            [0.0f64, 60.0, 90.0].map(|a| vec![a.to_radians().cos(), a.to_radians().sin()]).into();
        let names: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let similarity = Similarity::from_gram(GramMatrix::of_points(&names, &points).unwrap());
        let near = 1.0 - 30f64.to_radians().cos();
        let found = silhouettes(&similarity, &Partition::new(&names, &[0, 1, 1]));
        let expected = [0.0, (0.5 - near) / 0.5, (1.0 - near) / 1.0];
        // {b, c} is cluster 0, {a} is cluster 1.
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        assert!(silhouettes(&similarity, &Partition::new(&names, &[0, 0, 0])).iter().all(|value| *value == 0.0));
    }
}
