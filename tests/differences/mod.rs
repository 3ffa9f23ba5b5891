//! How far apart results are. A NaN is farther than any number, so that it is within no bound.
#![allow(clippy::unwrap_used, dead_code)]

use candle_core::Tensor;

/// The largest magnitude in a tensor of f32.
pub fn largest(tensor: &Tensor) -> f32 {
    largest_of(tensor.flatten_all().unwrap().to_vec1().unwrap())
}

/// The largest difference between two tensors of f32.
pub fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    largest(&(a - b).unwrap())
}

/// The largest difference between values at the same places.
pub fn difference_of_values(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    largest_of(a.iter().zip(b).map(|(a, b)| a - b))
}

/// Asserts that logits differ by rounding alone.
pub fn assert_same_logits(found: &[f32], expected: &[f32]) {
    let apart = difference_of_values(found, expected);
    assert!(apart < 2e-4, "logits are {apart:.1e} apart");
}

/// The largest magnitude; there is at least one value.
fn largest_of(values: impl IntoIterator<Item = f32>) -> f32 {
    values.into_iter().map(f32::abs).max_by(f32::total_cmp).unwrap()
}
