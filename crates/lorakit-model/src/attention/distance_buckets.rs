//! Buckets of the distance between two tokens, each of which has a bias of its own (Raffel et al. 2020, section 2.1,
//! <https://arxiv.org/abs/1910.10683>): near distances have one each, farther ones share them by their logarithm.

/// How distances are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DistanceBuckets {
    /// Number of buckets.
    pub count: usize,
    /// From this distance on, all share the last bucket.
    pub farthest: usize,
}

impl DistanceBuckets {
    /// The bucket of each distance from `-farthest` to `farthest`, of a key's position less its query's. Where `causal`, only
    /// keys before their query have buckets; else each direction has half of them.
    pub fn table(self, causal: bool) -> Vec<u32> {
        let farthest = self.farthest as i64;
        (-farthest..=farthest).map(|distance| self.bucket(distance, causal) as u32).collect()
    }

    /// The bucket of one distance; logarithms are in f32 as in transformers, where a bucket begins.
    fn bucket(self, distance: i64, causal: bool) -> usize {
        let count = if causal { self.count } else { self.count / 2 };
        let first = if !causal && distance > 0 { count } else { 0 };
        let far = if causal { (-distance).max(0) } else { distance.abs() } as usize;
        let exact = count / 2;
        if far < exact {
            return first + far;
        }
        let ratio = |of: usize| of as f64 / exact as f64;
        let step = (ratio(far) as f32).ln() / ratio(self.farthest).ln() as f32 * (count - exact) as f32;
        first + (exact + step as usize).min(count - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of transformers' `T5Attention._relative_position_bucket` for 8 buckets up to a distance of 20.
    #[test]
    fn near_distances_have_buckets_of_their_own() {
        let buckets = DistanceBuckets { count: 8, farthest: 20 };
        let of = |causal, distances: &[i64]| distances.iter().map(|&d| buckets.bucket(d, causal)).collect::<Vec<_>>();
        assert_eq!(of(true, &[5, 0, -1, -3, -4, -5, -6, -9, -14, -20, -90]), [0, 0, 1, 3, 4, 4, 5, 6, 7, 7, 7]);
        assert_eq!(of(false, &[0, -1, -2, -6, -7, -90, 1, 2, 6, 7, 90]), [0, 1, 2, 2, 3, 3, 5, 6, 6, 7, 7]);
        assert_eq!(buckets.table(true).len(), 41);
    }
}
