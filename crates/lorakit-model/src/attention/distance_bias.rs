//! Biases of scores by the distance between key and query, one for each head: T5's position encoding.

use crate::attention::distance_buckets::DistanceBuckets;
use candle_core::{Result, Tensor};

/// The biases of a stack, which all of its layers share.
#[derive(Clone)]
pub(crate) struct DistanceBias {
    /// `[buckets, heads]`.
    weight: Tensor,
    /// The bucket of each distance.
    buckets: Tensor,
    /// The table of a weight that is frozen.
    frozen: Option<Tensor>,
}

impl DistanceBias {
    /// The biases `weight`, `[buckets, heads]`, of heads that are causal or not.
    pub(crate) fn new(weight: Tensor, buckets: DistanceBuckets, causal: bool) -> Result<Self> {
        let buckets = Tensor::new(buckets.table(causal), weight.device())?;
        let mut bias = Self { weight, buckets, frozen: None };
        if !bias.weight.track_op() {
            bias.frozen = Some(bias.table()?);
        }
        Ok(bias)
    }

    /// The bias of each distance from the farthest before to the farthest after, `[heads, 2 farthest + 1]`.
    pub(crate) fn table(&self) -> Result<Tensor> {
        match &self.frozen {
            Some(table) => Ok(table.clone()),
            None => self.weight.index_select(&self.buckets, 0)?.t()?.contiguous(),
        }
    }
}

/// The values of a [`DistanceBias::table`].
#[derive(Clone, Copy)]
pub(crate) struct DistanceTable<'a> {
    values: &'a [f32],
    /// Distances of a head, an odd number.
    width: usize,
}

impl<'a> DistanceTable<'a> {
    /// A table of `heads` heads.
    pub(crate) fn new(values: &'a [f32], heads: usize) -> Self {
        Self { values, width: values.len() / heads.max(1) }
    }

    /// The biases of a head between `queries` and `keys`, the last of which belongs to the last query: that of query `i` and
    /// key `j` is at `queries - 1 - i + j`.
    pub(crate) fn diagonals(&self, head: usize, queries: usize, keys: usize) -> Vec<f32> {
        let own = &self.values[head * self.width..][..self.width];
        (0..(queries + keys).saturating_sub(1)).map(|at| own[self.index(at, keys)]).collect()
    }

    /// Adds the gradients of [`DistanceTable::diagonals`] to those of the table.
    pub(crate) fn add_gradient(&self, (head, keys): (usize, usize), diagonals: &[f32], gradient: &mut [f32]) {
        let own = &mut gradient[head * self.width..][..self.width];
        diagonals.iter().enumerate().for_each(|(at, value)| own[self.index(at, keys)] += value);
    }

    /// Where in a head's biases the distance of a diagonal is: beyond the farthest all are alike.
    fn index(&self, diagonal: usize, keys: usize) -> usize {
        (diagonal + self.width / 2 + 1).saturating_sub(keys).min(self.width - 1)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_query_s_biases_are_those_of_its_distances() {
        let buckets = DistanceBuckets { count: 8, farthest: 20 };
        let weight = Tensor::arange(0f32, 16.0, &Device::Cpu).unwrap().reshape((8, 2)).unwrap();
        let table = DistanceBias::new(weight, buckets, false).unwrap().table().unwrap();
        let values: Vec<f32> = table.flatten_all().unwrap().to_vec1().unwrap();
        let table = DistanceTable::new(&values, 2);
        let (queries, keys) = (3, 50);
        let diagonals = table.diagonals(1, queries, keys);
        // The query at position 48 of 50: bucket `b` of head 1 has the bias `2 b + 1`.
        let of = |key: usize| (diagonals[queries - 1 - 1 + key] - 1.0) / 2.0;
        assert_eq!([48, 47, 46, 41, 0, 49].map(of), [0.0, 1.0, 2.0, 3.0, 3.0, 5.0]);
        let mut gradient = vec![0.0; values.len()];
        table.add_gradient((1, keys), &vec![1.0; diagonals.len()], &mut gradient);
        assert_eq!(gradient.iter().sum::<f32>(), diagonals.len() as f32);
        assert_eq!(gradient[41..][..2], [(keys - 20) as f32, 1.0]);
    }
}
