//! k-means as the paper runs it with scikit-learn: Lloyd's algorithm with greedy k-means++ initialization, restarts, and no
//! empty clusters.
//!
//! k-means minimizes the inertia, `sum_i |x_i - m_c(i)|^2`, where m_c is the mean of cluster c. linfa's implementation would
//! give other results: its k-means++ tries one candidate for each center where scikit-learn keeps the best of several, and
//! so finds worse optima on rows of cosines; and it may return empty clusters.

use lorakit_format::rng::CounterRng;
use rayon::prelude::*;

use crate::error::{ClusterError, Result};
use crate::point_blocks::PointBlocks;

/// The number of restarts, of which the best is kept: scikit-learn's `n_init`, as in the paper's code.
const RESTARTS: u64 = 10;

/// The largest number of iterations of a restart, as in scikit-learn. More than 30 are rarely needed.
const MAX_ITERATIONS: usize = 300;

/// Points whose coordinates differ by less than this, relative to the largest coordinate of all, count as equal: cosines come
/// from f32 products, and smaller differences are rounding.
const TOLERANCE: f64 = 1e-6;

/// Assigns each of `points`, all of one length, to one of `k` clusters, none of them empty.
///
/// The labels are in no particular order; the same points, k and seed give the same labels.
///
/// # Errors
/// If k is 0 or exceeds the number of distinct points; if lengths differ or a value is not finite.
pub fn kmeans(points: &[Vec<f64>], k: usize, seed: u64) -> Result<Vec<usize>> {
    check_k(k, points.len())?;
    check_points(points)?;
    let distinct = distinct(points, k);
    if k > distinct {
        return Err(ClusterError::TooFewDistinct { k, points: points.len(), distinct });
    }
    let blocks = PointBlocks::of(points);
    let restarts: Vec<Restart> = (0..RESTARTS)
        .into_par_iter()
        .map(|restart| Restart::new(points, &blocks, k, CounterRng::seeded(seed, restart)))
        .collect();
    // The first of equals, so that the result does not depend on which restart finishes first.
    let best = restarts.into_iter().reduce(|best, next| if next.inertia < best.inertia { next } else { best });
    Ok(best.map(|restart| restart.labels).unwrap_or_default())
}

/// The result of one restart.
struct Restart {
    labels: Vec<usize>,
    /// The sum of the squared distances to the clusters' means.
    inertia: f64,
}

impl Restart {
    /// Lloyd's iteration from k-means++ centers until no label changes.
    fn new(points: &[Vec<f64>], blocks: &PointBlocks, k: usize, rng: CounterRng) -> Self {
        let mut labels = blocks.nearest(&initial_centers(points, blocks, k, rng));
        for _ in 0..MAX_ITERATIONS {
            fill_empty(points, &mut labels, k);
            let moved = blocks.nearest(&means(points, &labels, k));
            if moved == labels {
                break;
            }
            labels = moved;
        }
        fill_empty(points, &mut labels, k);
        let means = means(points, &labels, k);
        let inertia = points.iter().zip(&labels).map(|(point, label)| squared_distance(point, &means[*label])).sum();
        Self { labels, inertia }
    }
}

/// Initial centers by greedy k-means++ (Arthur and Vassilvitskii, 2007): each is drawn from the points with probability
/// proportional to `D(x)^2`, the squared distance to the nearest center so far, and of 2 + ln k draws the one that leaves
/// the smallest sum of `D(x)^2` is kept.
fn initial_centers(points: &[Vec<f64>], blocks: &PointBlocks, k: usize, mut rng: CounterRng) -> Vec<Vec<f64>> {
    let mut centers = vec![points[rng.random_range_of_rand(points.len() as u32) as usize].clone()];
    let mut distances = blocks.squared_distances(&centers[0]);
    let trials = 2 + (k as f64).ln() as usize;
    while centers.len() < k {
        let mut best: Option<(usize, Vec<f64>, f64)> = None;
        for _ in 0..trials {
            let at = weighted_index(&distances, &mut rng);
            let mut left = blocks.squared_distances(&points[at]);
            left.iter_mut().zip(&distances).for_each(|(left, now)| *left = left.min(*now));
            let sum = left.iter().sum();
            if best.as_ref().is_none_or(|(_, _, least)| sum < *least) {
                best = Some((at, left, sum));
            }
        }
        let Some((at, left, _)) = best else { break };
        centers.push(points[at].clone());
        distances = left;
    }
    centers
}

/// An index drawn with probability proportional to its weight.
fn weighted_index(weights: &[f64], rng: &mut CounterRng) -> usize {
    let mut left = rng.uniform_f64() * weights.iter().sum::<f64>();
    let found = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    // Rounding can leave a rest after the last weight. The point with the largest weight is certainly not a center yet.
    found.unwrap_or_else(|| weights.iter().enumerate().max_by(|x, y| x.1.total_cmp(y.1)).map_or(0, |(at, _)| at))
}

fn check_points(points: &[Vec<f64>]) -> Result<()> {
    for (at, point) in points.iter().enumerate() {
        if point.len() != points[0].len() {
            let (found, expected) = (point.len(), points[0].len());
            return Err(ClusterError::Inconsistent(format!(
                "point {at} has {found} values; expected {expected}, as the first has"
            )));
        }
        if point.iter().any(|value| !value.is_finite()) {
            return Err(ClusterError::NotFinite { what: "point", name: at.to_string() });
        }
    }
    Ok(())
}

/// Checks a number of clusters.
///
/// # Errors
/// If k is 0 or exceeds the number of what is clustered.
pub(crate) fn check_k(k: usize, points: usize) -> Result<()> {
    match k {
        0 => Err(ClusterError::ZeroClusters),
        _ if k > points => Err(ClusterError::TooManyClusters { k, points }),
        _ => Ok(()),
    }
}

/// Moves the point farthest from its own cluster's mean into each empty cluster, as scikit-learn does. A point that is alone
/// in its cluster equals the mean up to rounding and is not moved while other points differ.
fn fill_empty(points: &[Vec<f64>], labels: &mut [usize], k: usize) {
    for empty in 0..k {
        if labels.contains(&empty) {
            continue;
        }
        let means = means(points, labels, k);
        let distances = points.iter().zip(labels.iter()).map(|(point, label)| squared_distance(point, &means[*label]));
        // The first of equals, so that the choice depends on the points alone.
        let farthest = distances.enumerate().reduce(|best, next| if next.1 > best.1 { next } else { best });
        if let Some((at, _)) = farthest {
            labels[at] = empty;
        }
    }
}

fn means(points: &[Vec<f64>], labels: &[usize], k: usize) -> Vec<Vec<f64>> {
    let mut means = vec![vec![0.0; points[0].len()]; k];
    let mut counts = vec![0.0f64; k];
    for (point, label) in points.iter().zip(labels) {
        counts[*label] += 1.0;
        means[*label].iter_mut().zip(point).for_each(|(mean, value)| *mean += value);
    }
    for (mean, count) in means.iter_mut().zip(counts) {
        mean.iter_mut().for_each(|value| *value /= count.max(1.0));
    }
    means
}

fn squared_distance(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// The number of distinct points, counted up to `enough`.
fn distinct(points: &[Vec<f64>], enough: usize) -> usize {
    let largest = points.iter().flatten().fold(0f64, |largest, value| largest.max(value.abs()));
    let same = |x: &Vec<f64>, y: &Vec<f64>| x.iter().zip(y).all(|(x, y)| (x - y).abs() <= TOLERANCE * largest);
    let mut kept: Vec<&Vec<f64>> = Vec::new();
    for point in points {
        if kept.len() == enough {
            break;
        }
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
    use crate::synthetic::normal;

    /// Three clouds of ten points around the corners of a triangle.
    fn clouds() -> (Vec<Vec<f64>>, Vec<usize>) {
        let corners = [[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]];
        let noise = normal(1, 60);
        let point = |at: usize| (0..2).map(|d| corners[at % 3][d] + f64::from(noise[2 * at + d])).collect();
        ((0..30).map(point).collect(), (0..30).map(|at| at % 3).collect())
    }

    #[test]
    fn separate_clouds_are_found_with_any_seed() {
        let (points, expected) = clouds();
        for seed in 0..20 {
            let labels = kmeans(&points, 3, seed).unwrap();
            assert_eq!(adjusted_rand(&labels, &expected).unwrap(), 1.0, "seed {seed}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_result() {
        let (points, _) = clouds();
        assert_eq!(kmeans(&points, 7, 5).unwrap(), kmeans(&points, 7, 5).unwrap());
    }

    /// Clusters on disk came of these draws.
    #[test]
    fn labels_of_a_seed_stay_as_they_were() {
        let points: Vec<Vec<f64>> =
            normal(11, 80).chunks_exact(2).map(|point| point.iter().map(|value| f64::from(*value)).collect()).collect();
        let expected = [
            0, 0, 2, 3, 0, 1, 4, 0, 4, 4, 1, 1, 3, 4, 3, 0, 2, 1, 3, 3, 1, 0, 3, 0, 1, 2, 0, 2, 4, 1, 2, 4, 4, 0, 4, 0,
            1, 1, 3, 0,
        ];
        assert_eq!(kmeans(&points, 5, 0).unwrap(), expected);
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
    fn an_empty_cluster_gets_the_farthest_point() {
        let points = [0.0, 1.0, 2.0, 50.0].map(|value| vec![value]);
        let mut labels = vec![0, 0, 0, 0];
        fill_empty(&points, &mut labels, 3);
        // First 50 is moved, then 0, which is as far from its mean as 2 and comes first.
        assert_eq!(labels, [2, 0, 0, 1]);
    }

    #[test]
    fn impossible_numbers_of_clusters_are_errors() {
        let points = [1.0, 1.0, 2.0].map(|value| vec![value]);
        assert!(matches!(kmeans(&points, 0, 0), Err(ClusterError::ZeroClusters)));
        assert!(matches!(kmeans(&points, 4, 0), Err(ClusterError::TooManyClusters { k: 4, points: 3 })));
        assert!(matches!(kmeans(&points, 3, 0), Err(ClusterError::TooFewDistinct { k: 3, points: 3, distinct: 2 })));
        assert!(kmeans(&points, 2, 0).is_ok());
    }

    #[test]
    fn nan_is_an_error() {
        let points = [1.0, f64::NAN, 2.0].map(|value| vec![value]);
        assert!(kmeans(&points, 2, 0).is_err());
    }
}
