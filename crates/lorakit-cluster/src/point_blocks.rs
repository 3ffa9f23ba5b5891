//! Points in an order of memory in which the distances of several to one center are computed at once.

/// The number of points whose distances are computed at once: their sums are independent, which vector instructions and
/// long additions need.
const LANES: usize = 16;

/// Points in blocks of [`LANES`], the coordinates of each block together: `[blocks, coordinates, LANES]`.
///
/// Each distance is the sum that the points' own order of memory gives, added in the same order.
pub(crate) struct PointBlocks {
    values: Vec<f64>,
    points: usize,
    coordinates: usize,
}

impl PointBlocks {
    /// These points, all of one length.
    pub fn of(points: &[Vec<f64>]) -> Self {
        let coordinates = points.first().map_or(0, Vec::len);
        let mut values = vec![0.0; points.len().div_ceil(LANES) * coordinates * LANES];
        for (at, point) in points.iter().enumerate() {
            let start = at / LANES * coordinates * LANES + at % LANES;
            for (d, value) in point.iter().enumerate() {
                values[start + d * LANES] = *value;
            }
        }
        Self { values, points: points.len(), coordinates }
    }

    /// The squared distance of each point to `center`.
    pub fn squared_distances(&self, center: &[f64]) -> Vec<f64> {
        let mut distances: Vec<f64> = self.blocks().flat_map(|block| squared_distances(block, center)).collect();
        distances.truncate(self.points);
        distances
    }

    /// The nearest center of each point, the first of equals.
    pub fn nearest(&self, centers: &[Vec<f64>]) -> Vec<usize> {
        let mut labels = Vec::with_capacity(self.points.next_multiple_of(LANES));
        for block in self.blocks() {
            let (mut best, mut least) = ([0; LANES], [f64::INFINITY; LANES]);
            for (label, center) in centers.iter().enumerate() {
                let distances = squared_distances(block, center);
                for ((best, least), distance) in best.iter_mut().zip(&mut least).zip(distances) {
                    if distance < *least {
                        (*best, *least) = (label, distance);
                    }
                }
            }
            labels.extend(best);
        }
        labels.truncate(self.points);
        labels
    }

    fn blocks(&self) -> impl Iterator<Item = &[f64]> {
        // Points without coordinates are all equal; there is nothing to compare.
        let size = (self.coordinates * LANES).max(1);
        let empty = if self.coordinates == 0 { self.points.div_ceil(LANES) } else { 0 };
        self.values.chunks_exact(size).chain(std::iter::repeat_n(&[][..], empty))
    }
}

fn squared_distances(block: &[f64], center: &[f64]) -> [f64; LANES] {
    let mut sums = [0.0; LANES];
    let (coordinates, _) = block.as_chunks::<LANES>();
    for (values, center) in coordinates.iter().zip(center) {
        for (sum, value) in sums.iter_mut().zip(values) {
            let difference = value - center;
            *sum += difference * difference;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::synthetic::normal;

    #[test]
    fn distances_are_those_of_single_points_to_the_last_bit() {
        for count in [1, LANES - 1, LANES, 3 * LANES + 5] {
            let values = normal(count as u64, count * 7);
            let points: Vec<Vec<f64>> = values.chunks(7).map(|p| p.iter().copied().map(f64::from).collect()).collect();
            let centers = [vec![0.1; 7], vec![0.1; 7], points[0].clone(), points[count / 2].clone()];
            let single = |point: &Vec<f64>, center: &Vec<f64>| -> f64 {
                point.iter().zip(center).map(|(x, y)| (x - y) * (x - y)).sum()
            };
            let blocks = PointBlocks::of(&points);
            for center in &centers {
                let expected: Vec<f64> = points.iter().map(|point| single(point, center)).collect();
                assert_eq!(blocks.squared_distances(center), expected);
            }
            let nearest = |point: &Vec<f64>| {
                let distances = centers.iter().map(|center| single(point, center)).enumerate();
                distances.reduce(|best, next| if next.1 < best.1 { next } else { best }).unwrap().0
            };
            assert_eq!(blocks.nearest(&centers), points.iter().map(nearest).collect::<Vec<usize>>());
        }
    }

    #[test]
    fn points_without_coordinates_are_equal() {
        let blocks = PointBlocks::of(&vec![Vec::new(); 20]);
        assert_eq!((blocks.nearest(&[vec![], vec![]]), blocks.squared_distances(&[])), (vec![0; 20], vec![0.0; 20]));
    }
}
