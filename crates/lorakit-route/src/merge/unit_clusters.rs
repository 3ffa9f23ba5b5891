//! k-means of points from their inner products, for LoRA-LEGO: as many as its experts have ranks.
//!
//! Lloyd's algorithm with ten restarts misses the best partition of twelve units in up to four of five runs. Here single
//! points move as long as that lowers the inertia (Hartigan and Wong 1979, <https://doi.org/10.2307/2346830>), which has
//! fewer local optima, from more starts. Inner products suffice: with `S_c(i)` the sum of those of point i with the members
//! of cluster c, and `Q_c` that of all pairs of members, the squared distance of i from the mean is
//! `|x_i|^2 - 2 S_c(i) / n_c + Q_c / n_c^2`.

use faer::Mat;
use lorakit_format::rng::CounterRng;
use rand_chacha::rand_core::RngCore;

/// The number of starts, of which the best is kept.
const STARTS: u64 = 64;

/// The cluster of each point, from their inner products; clusters are numbered by their first members, and there are at
/// most `k`.
pub(super) fn unit_clusters(inner_products: &Mat<f64>, k: usize, seed: u64) -> Vec<usize> {
    let starts = (0..STARTS).map(|start| Clustering::local_optimum(inner_products, k, CounterRng::seeded(seed, start)));
    // The first of equals.
    let best = starts.reduce(|best, next| if next.inertia() < best.inertia() * (1.0 - 1e-12) { next } else { best });
    best.map_or_else(Vec::new, |best| numbered(&best.labels))
}

/// Points in clusters, with the sums that say how far a point is from a mean.
struct Clustering<'a> {
    inner_products: &'a Mat<f64>,
    labels: Vec<usize>,
    counts: Vec<usize>,
    /// `S_c(i)`, `[points, clusters]`.
    sums: Mat<f64>,
    /// `Q_c`.
    squares: Vec<f64>,
}

impl<'a> Clustering<'a> {
    /// A partition that moving a single point does not improve.
    fn local_optimum(inner_products: &'a Mat<f64>, k: usize, rng: CounterRng) -> Self {
        let points = inner_products.nrows();
        let labels = nearest(inner_products, &drawn(inner_products, k, rng));
        let (counts, sums, squares) = (vec![0; k], Mat::zeros(points, k), vec![0.0; k]);
        let mut partition = Self { inner_products, labels: vec![0; points], counts, sums, squares };
        labels.into_iter().enumerate().for_each(|(point, cluster)| partition.add(point, cluster));
        while (0..points).filter(|point| partition.improve(*point)).count() > 0 {}
        partition
    }

    fn add(&mut self, point: usize, cluster: usize) {
        self.squares[cluster] += 2.0 * self.sums[(point, cluster)] + self.inner_products[(point, point)];
        self.counts[cluster] += 1;
        self.labels[point] = cluster;
        for other in 0..self.labels.len() {
            self.sums[(other, cluster)] += self.inner_products[(other, point)];
        }
    }

    fn remove(&mut self, point: usize) {
        let cluster = self.labels[point];
        self.squares[cluster] -= 2.0 * self.sums[(point, cluster)] - self.inner_products[(point, point)];
        self.counts[cluster] -= 1;
        for other in 0..self.labels.len() {
            self.sums[(other, cluster)] -= self.inner_products[(other, point)];
        }
    }

    /// The squared distance of a point from a cluster's mean.
    fn distance(&self, point: usize, cluster: usize) -> f64 {
        let count = self.counts[cluster] as f64;
        let mean = self.sums[(point, cluster)] / count;
        (self.inner_products[(point, point)] - 2.0 * mean + self.squares[cluster] / (count * count)).max(0.0)
    }

    /// Moves a point to the cluster where it costs least, if that lowers the inertia beyond rounding.
    fn improve(&mut self, point: usize) -> bool {
        let from = self.labels[point];
        if self.counts[from] == 1 {
            return false;
        }
        let count = self.counts[from] as f64;
        let gain = count / (count - 1.0) * self.distance(point, from);
        let cost = |cluster: usize| match self.counts[cluster] {
            0 => 0.0,
            count => count as f64 / (count as f64 + 1.0) * self.distance(point, cluster),
        };
        let others = (0..self.counts.len()).filter(|cluster| *cluster != from);
        let Some(to) = others.min_by(|one, other| cost(*one).total_cmp(&cost(*other))) else { return false };
        let rounding = 1e-12 * self.inner_products[(point, point)].max(self.squares[from] / (count * count));
        if cost(to) + rounding >= gain {
            return false;
        }
        self.remove(point);
        self.add(point, to);
        true
    }

    /// The sum of the squared distances of all points from their clusters' means.
    fn inertia(&self) -> f64 {
        let all: f64 = (0..self.labels.len()).map(|point| self.inner_products[(point, point)]).sum();
        let filled = self.counts.iter().zip(&self.squares).filter(|(count, _)| **count > 0);
        all - filled.map(|(count, squares)| squares / *count as f64).sum::<f64>()
    }
}

/// `k` points, each drawn with a probability proportional to its squared distance from the nearest before it (k-means++).
fn drawn(inner_products: &Mat<f64>, k: usize, mut rng: CounterRng) -> Vec<usize> {
    let points = inner_products.nrows();
    let mut drawn = Vec::with_capacity(k);
    let mut distances = vec![1.0; points];
    for _ in 0..k {
        let total: f64 = distances.iter().sum();
        let mut left = f64::from(rng.next_u32()) / 2f64.powi(32) * total;
        let at = distances.iter().position(|distance| {
            left -= distance;
            left < 0.0
        });
        // All other points equal one of those drawn.
        let Some(at) = at else { break };
        drawn.push(at);
        let squared = |point: usize| squared_distance(inner_products, point, at);
        let is_first = drawn.len() == 1;
        let nearer =
            |(point, before): (usize, &f64)| if is_first { squared(point) } else { before.min(squared(point)) };
        distances = distances.iter().enumerate().map(nearer).collect();
    }
    drawn
}

/// The index of the nearest center of each point.
fn nearest(inner_products: &Mat<f64>, centers: &[usize]) -> Vec<usize> {
    let distance = |point: usize, center: usize| squared_distance(inner_products, point, centers[center]);
    let closest = |point: usize| {
        (0..centers.len()).min_by(|a, b| distance(point, *a).total_cmp(&distance(point, *b))).unwrap_or(0)
    };
    (0..inner_products.nrows()).map(closest).collect()
}

fn squared_distance(inner_products: &Mat<f64>, one: usize, other: usize) -> f64 {
    let norms = inner_products[(one, one)] + inner_products[(other, other)];
    let squared = norms - 2.0 * inner_products[(one, other)];
    // Equal points differ by rounding.
    if squared <= 1e-13 * norms { 0.0 } else { squared }
}

/// The labels numbered by their first occurrence.
fn numbered(labels: &[usize]) -> Vec<usize> {
    let mut seen: Vec<usize> = Vec::new();
    let number = |label: &usize| match seen.iter().position(|known| known == label) {
        Some(number) => number,
        None => {
            seen.push(*label);
            seen.len() - 1
        }
    };
    labels.iter().map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner_products(points: &[[f64; 2]]) -> Mat<f64> {
        Mat::from_fn(points.len(), points.len(), |i, j| points[i][0] * points[j][0] + points[i][1] * points[j][1])
    }

    /// The least inertia of all partitions into at most `k` clusters.
    fn least_inertia(points: &[[f64; 2]], k: usize) -> f64 {
        let partitions = k.pow(points.len() as u32);
        let labels = |code: usize| (0..points.len()).map(move |at| code / k.pow(at as u32) % k).collect::<Vec<_>>();
        (0..partitions).map(|code| inertia(points, &labels(code))).fold(f64::INFINITY, f64::min)
    }

    fn inertia(points: &[[f64; 2]], labels: &[usize]) -> f64 {
        let of = |cluster: usize| {
            let members: Vec<&[f64; 2]> =
                points.iter().zip(labels).filter(|(_, label)| **label == cluster).map(|(point, _)| point).collect();
            let mean = |axis: usize| members.iter().map(|point| point[axis]).sum::<f64>() / members.len() as f64;
            let mean = [mean(0), mean(1)];
            members.iter().map(|point| (point[0] - mean[0]).powi(2) + (point[1] - mean[1]).powi(2)).sum::<f64>()
        };
        (0..points.len()).map(of).sum()
    }

    #[test]
    fn the_best_partition_is_found() {
        for seed in 0..6 {
            let mut rng = CounterRng::seeded(seed, 99);
            let mut value = || f64::from(rng.next_u32()) / 2f64.powi(32);
            let points: Vec<[f64; 2]> = (0..9).map(|_| [value(), value()]).collect();
            let labels = unit_clusters(&inner_products(&points), 3, 0);
            let (found, least) = (inertia(&points, &labels), least_inertia(&points, 3));
            assert!((found - least).abs() < 1e-12, "{found} {least}");
            assert_eq!(labels[0], 0);
        }
    }

    #[test]
    fn equal_points_need_no_more_clusters_than_there_are_different_ones() {
        let labels = unit_clusters(&inner_products(&[[1.0, 2.0], [3.0, 0.5], [1.0, 2.0], [3.0, 0.5]]), 3, 0);
        assert_eq!(labels, [0, 1, 0, 1]);
    }
}
