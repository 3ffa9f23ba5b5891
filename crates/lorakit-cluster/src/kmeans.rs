//! k-means with k-means++ and restarts, of which no cluster is empty.
//!
//! The iteration is linfa's. Around it stands what a clustering of experts needs and linfa leaves open: k beyond the
//! distinct points is refused, and a cluster that lost all its points gets the point that fits its own worst.

use linfa::DatasetBase;
use linfa::traits::{Fit, Predict};
use linfa_clustering::KMeans;
use ndarray::Array2;
use rand_chacha_03::ChaCha8Rng;
use rand_chacha_03::rand_core::SeedableRng;

use crate::{Error, Result};

/// How often k-means starts anew; the best is kept. scikit-learn's `n_init`, as the paper's code sets it.
const RESTARTS: usize = 10;

/// Points closer than this, relative to the largest coordinate of any, are one point: cosines come from f32
/// products, and differences below their rounding are none.
const SAME: f64 = 1e-6;

/// Assigns each of `points`, all of one length, to one of `k` clusters, none of them empty.
///
/// The labels have no order of their own; the same points, k and seed give the same labels.
///
/// # Errors
/// If k is 0, exceeds the number of points, or the number of distinct points; if a value is not finite.
pub fn kmeans(points: &[Vec<f64>], k: usize, seed: u64) -> Result<Vec<usize>> {
    check_k(k, points.len())?;
    let distinct = distinct(points);
    if k > distinct {
        return Err(Error::TooFewDistinct { k, points: points.len(), distinct });
    }
    let columns = points[0].len();
    let table = Array2::from_shape_vec((points.len(), columns), points.concat())
        .map_err(|_| Error::Numerical("k-means: points of different lengths; it"))?;
    let data = DatasetBase::from(table);
    let model = KMeans::params_with_rng(k, ChaCha8Rng::seed_from_u64(seed))
        .n_runs(RESTARTS)
        .fit(&data)
        .map_err(|_| Error::Numerical("k-means on values that are not finite"))?;
    let mut labels = model.predict(&data).to_vec();
    fill_empty(points, &mut labels, k);
    Ok(labels)
}

/// Refuses a number of clusters that n experts cannot fill.
///
/// # Errors
/// If k is 0 or exceeds n.
pub(crate) fn check_k(k: usize, experts: usize) -> Result<()> {
    match k {
        0 => Err(Error::ZeroClusters),
        _ if k > experts => Err(Error::TooManyClusters { k, experts }),
        _ => Ok(()),
    }
}

/// Gives each empty cluster the point farthest from its own cluster's mean, as scikit-learn does. A cluster of one
/// point lies at its mean and never gives it away while other points differ.
fn fill_empty(points: &[Vec<f64>], labels: &mut [usize], k: usize) {
    for empty in 0..k {
        if labels.contains(&empty) {
            continue;
        }
        let means = means(points, labels, k);
        let distances = points.iter().zip(labels.iter()).map(|(point, label)| squared_distance(point, &means[*label]));
        // The first of equals, so that the choice does not depend on anything but the points.
        let farthest = distances.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
        if let Some((at, _)) = farthest {
            labels[at] = empty;
        }
    }
}

fn means(points: &[Vec<f64>], labels: &[usize], k: usize) -> Vec<Vec<f64>> {
    let mut means = vec![vec![0.0; points[0].len()]; k];
    for (point, label) in points.iter().zip(labels) {
        let count = labels.iter().filter(|other| *other == label).count() as f64;
        means[*label].iter_mut().zip(point).for_each(|(mean, value)| *mean += value / count);
    }
    means
}

fn squared_distance(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// How many of the points are different.
fn distinct(points: &[Vec<f64>]) -> usize {
    let largest = points.iter().flatten().fold(0f64, |largest, value| largest.max(value.abs()));
    let same = |x: &Vec<f64>, y: &Vec<f64>| x.iter().zip(y).all(|(x, y)| (x - y).abs() <= SAME * largest);
    let mut kept: Vec<&Vec<f64>> = Vec::new();
    for point in points {
        if !kept.iter().any(|other| same(point, other)) {
            kept.push(point);
        }
    }
    kept.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::adjusted_rand::adjusted_rand;
    use crate::planted::normal;

    /// Three clouds of ten points around the corners of a triangle.
    fn clouds() -> (Vec<Vec<f64>>, Vec<usize>) {
        let corners = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]];
        let noise = normal(1, 60);
        let point = |at: usize| (0..2).map(|d| corners[at % 3][d] + f64::from(noise[2 * at + d])).collect();
        ((0..30).map(point).collect(), (0..30).map(|at| at % 3).collect())
    }

    #[test]
    fn clouds_are_found_whatever_the_seed() {
        let (points, expected) = clouds();
        for seed in 0..20 {
            let labels = kmeans(&points, 3, seed).unwrap();
            assert_eq!(adjusted_rand(&labels, &expected).unwrap(), 1.0, "seed {seed}");
        }
    }

    #[test]
    fn one_seed_gives_one_result() {
        let (points, _) = clouds();
        assert_eq!(kmeans(&points, 7, 5).unwrap(), kmeans(&points, 7, 5).unwrap());
    }

    #[test]
    fn no_cluster_is_empty_up_to_one_per_point() {
        let (points, _) = clouds();
        for k in 1..=30 {
            let labels = kmeans(&points, k, 0).unwrap();
            assert!((0..k).all(|label| labels.contains(&label)), "k {k}");
        }
    }

    #[test]
    fn an_emptied_cluster_takes_the_worst_fitting_point() {
        let points = [0.0, 1.0, 2.0, 50.0].map(|value| vec![value]);
        let mut labels = vec![0, 0, 0, 0];
        fill_empty(&points, &mut labels, 3);
        // First 50 leaves, then, of 0 and 2, which are as far from their mean, the first.
        assert_eq!(labels, [2, 0, 0, 1]);
    }

    #[test]
    fn impossible_numbers_of_clusters_are_refused() {
        let points = [1.0, 1.0, 2.0].map(|value| vec![value]);
        assert!(matches!(kmeans(&points, 0, 0), Err(Error::ZeroClusters)));
        assert!(matches!(kmeans(&points, 4, 0), Err(Error::TooManyClusters { k: 4, experts: 3 })));
        assert!(matches!(kmeans(&points, 3, 0), Err(Error::TooFewDistinct { k: 3, points: 3, distinct: 2 })));
        assert!(kmeans(&points, 2, 0).is_ok());
    }

    #[test]
    fn a_value_that_is_not_a_number_is_refused() {
        let points = [1.0, f64::NAN, 2.0].map(|value| vec![value]);
        assert!(kmeans(&points, 2, 0).is_err());
    }
}
