//! Gradients of a site's stacked matrices, of which a batch reaches only the rows of its own experts.
//!
//! A gradient in candle's graph is as large as its variable. With many experts in one variable, every batch of a few
//! sequences would make, sum and hold zeros for all the others; what is collected here is as large as what the batch
//! trains.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Gradients of some rows of a matrix: runs of its values by their start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SparseGradients(BTreeMap<usize, Vec<f32>>);

impl SparseGradients {
    /// Adds the gradients of the values from `start`.
    pub fn add(&mut self, start: usize, values: Vec<f32>) {
        let Some(sum) = self.0.get_mut(&start) else {
            self.0.insert(start, values);
            return;
        };
        sum.resize(sum.len().max(values.len()), 0.0);
        sum.iter_mut().zip(&values).for_each(|(sum, value)| *sum += value);
    }

    /// Adds the gradients of another batch.
    pub fn add_all(&mut self, others: Self) {
        others.0.into_iter().for_each(|(start, values)| self.add(start, values));
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The gradient of all `count` values of the matrix: zero where nothing was added, a sum where runs overlap.
    pub fn dense(&self, count: usize) -> Vec<f32> {
        let mut dense = vec![0.0; count];
        for (&start, values) in &self.0 {
            dense[start..].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        dense
    }
}

/// Where the backward passes of a batch leave the gradients of one site's stacked A and B.
#[derive(Clone, Debug, Default)]
pub struct GradientSink(Arc<Mutex<[SparseGradients; 2]>>);

impl GradientSink {
    /// Adds the gradients of one backward.
    pub(crate) fn add(&self, [a, b]: [SparseGradients; 2]) {
        // A panic in another thread ends the run, whatever that thread left here.
        let mut sums = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        sums[0].add_all(a);
        sums[1].add_all(b);
    }

    /// Takes the gradients of A and of B collected so far.
    pub fn take(&self) -> [SparseGradients; 2] {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_summed_and_the_rest_is_zero() {
        let sink = GradientSink::default();
        let of = |start, values: [f32; 2]| {
            let mut gradients = SparseGradients::default();
            gradients.add(start, values.to_vec());
            gradients
        };
        sink.add([of(1, [2.0, 3.0]), of(0, [1.0, 1.0])]);
        sink.add([of(1, [4.0, 5.0]), of(1, [7.0, 8.0])]);
        let [a, b] = sink.take();
        assert_eq!(a.dense(5), [0.0, 6.0, 8.0, 0.0, 0.0]);
        assert_eq!(b.dense(4), [1.0, 8.0, 8.0, 0.0]);
        assert_eq!(sink.take(), [SparseGradients::default(), SparseGradients::default()]);
    }
}
