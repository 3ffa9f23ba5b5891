//! k-means as scikit-learn runs it for the paper: greedy k-means++, restarts, and no cluster empty.
//!
//! Not linfa's, for two reasons that change results. Its k-means++ tries one candidate per centre where
//! scikit-learn's keeps the best of several, and so ends in worse optima on rows of cosines; and it may return empty
//! clusters.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::{Error, Result};

/// How often k-means starts anew; the best is kept. scikit-learn's `n_init`, as the paper's code sets it.
const RESTARTS: u64 = 10;

/// After this many rounds a restart stops where it is, as in scikit-learn. Rarely are more than 30 needed.
const ROUNDS: usize = 300;

/// Points closer than this, relative to the largest coordinate of any, are one point: cosines come from f32
/// products, and differences below their rounding are none.
const SAME: f64 = 1e-6;

/// Assigns each of `points`, all of one length, to one of `k` clusters, none of them empty.
///
/// The labels have no order of their own; the same points, k and seed give the same labels.
///
/// # Errors
/// If k is 0, exceeds the number of points, or the number of distinct points; if lengths differ or a value is not
/// finite.
pub fn kmeans(points: &[Vec<f64>], k: usize, seed: u64) -> Result<Vec<usize>> {
    check_k(k, points.len())?;
    check_points(points)?;
    let distinct = distinct(points);
    if k > distinct {
        return Err(Error::TooFewDistinct { k, points: points.len(), distinct });
    }
    let runs: Vec<Run> =
        (0..RESTARTS).into_par_iter().map(|restart| Run::of(points, k, stream(seed, restart))).collect();
    // The first of equals: which restart finishes first has no say.
    let best = runs.into_iter().reduce(|best, next| if next.inertia < best.inertia { next } else { best });
    Ok(best.map(|run| run.labels).unwrap_or_default())
}

/// The randomness of one restart.
fn stream(seed: u64, restart: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(restart);
    rng
}

/// One restart's result.
struct Run {
    labels: Vec<usize>,
    /// The sum of the squared distances to the clusters' means.
    inertia: f64,
}

impl Run {
    /// Lloyd's iteration from k-means++ centres until no label changes.
    fn of(points: &[Vec<f64>], k: usize, rng: ChaCha8Rng) -> Self {
        let mut labels = nearest(points, &centres(points, k, rng));
        for _ in 0..ROUNDS {
            fill_empty(points, &mut labels, k);
            let moved = nearest(points, &means(points, &labels, k));
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

/// Starting centres: each next one is drawn among the points by its squared distance to the centres so far
/// (k-means++, Arthur and Vassilvitskii, 2007), the best of 2 + ln k draws.
fn centres(points: &[Vec<f64>], k: usize, mut rng: ChaCha8Rng) -> Vec<Vec<f64>> {
    let mut centres = vec![points[rng.random_range(0..points.len())].clone()];
    let mut distances: Vec<f64> = points.iter().map(|point| squared_distance(point, &centres[0])).collect();
    let trials = 2 + (k as f64).ln() as usize;
    while centres.len() < k {
        let mut best: Option<(usize, Vec<f64>, f64)> = None;
        for _ in 0..trials {
            let at = draw(&distances, &mut rng);
            let left = points.iter().zip(&distances).map(|(point, now)| squared_distance(point, &points[at]).min(*now));
            let left: Vec<f64> = left.collect();
            let sum = left.iter().sum();
            if best.as_ref().is_none_or(|(_, _, least)| sum < *least) {
                best = Some((at, left, sum));
            }
        }
        let Some((at, left, _)) = best else { break };
        centres.push(points[at].clone());
        distances = left;
    }
    centres
}

/// An index drawn with probability proportional to its weight.
fn draw(weights: &[f64], rng: &mut ChaCha8Rng) -> usize {
    let mut left = rng.random::<f64>() * weights.iter().sum::<f64>();
    let found = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    // Rounding can leave a rest after the last weight; then it is the largest that is surely not a centre yet.
    found.unwrap_or_else(|| weights.iter().enumerate().max_by(|x, y| x.1.total_cmp(y.1)).map_or(0, |(at, _)| at))
}

/// The nearest centre of each point, the first of equals.
fn nearest(points: &[Vec<f64>], centres: &[Vec<f64>]) -> Vec<usize> {
    let closest = |point: &Vec<f64>| {
        let distances = centres.iter().map(|centre| squared_distance(point, centre)).enumerate();
        distances.reduce(|best, next| if next.1 < best.1 { next } else { best }).map_or(0, |(label, _)| label)
    };
    points.iter().map(closest).collect()
}

fn check_points(points: &[Vec<f64>]) -> Result<()> {
    for (at, point) in points.iter().enumerate() {
        if point.len() != points[0].len() {
            let (found, expected) = (point.len(), points[0].len());
            return Err(Error::Inconsistent(format!(
                "point {at} has {found} values; expected {expected}, as the first has"
            )));
        }
        if point.iter().any(|value| !value.is_finite()) {
            return Err(Error::NotFinite { what: "point", name: at.to_string() });
        }
    }
    Ok(())
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
/// point lies at its mean, up to rounding, and never gives it away while other points differ.
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
