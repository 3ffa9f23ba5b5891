//! How far two tensors of logits are apart, and how far float32 alone moves them.
//!
//! Two exact ways to the same logits differ by rounding, and layers amplify that: by 1e-6 on a small base, by 1e-2 at some
//! tokens of a real one. So the noise of float32 is measured, on the base and with the adapter in question, by flipping the
//! last bit of every output of every site: the least that another order of summation changes.

use anyhow::Result;
use candle_core::Tensor;

/// How many times the measured noise two exact evaluations may differ. A sum of thousands of terms in another order
/// changes more than its last bit.
pub const NOISE_FACTOR: f64 = 16.0;

/// The difference of two tensors of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitDifference {
    /// The largest absolute difference; NaN if any is.
    pub largest: f64,
    /// The root of the mean squared difference. A few tokens with large activations decide the largest difference, so a
    /// wrong merge shows here first.
    pub root_mean_square: f64,
}

impl LogitDifference {
    /// The difference of two tensors of one shape.
    pub fn of(one: &Tensor, other: &Tensor) -> Result<Self> {
        let differences = (one - other)?.flatten_all()?.to_vec1::<f32>()?;
        let larger = |most: f64, value: f64| if most.is_nan() || value <= most { most } else { value };
        let largest = differences.iter().map(|value| f64::from(value.abs())).fold(0.0, larger);
        let squares: f64 = differences.iter().map(|&value| f64::from(value).powi(2)).sum();
        Ok(Self { largest, root_mean_square: (squares / differences.len().max(1) as f64).sqrt() })
    }

    /// The larger of both, each by itself.
    pub fn max(self, other: Self) -> Self {
        let larger = |one: f64, other: f64| if one.is_nan() || one >= other { one } else { other };
        Self {
            largest: larger(self.largest, other.largest),
            root_mean_square: larger(self.root_mean_square, other.root_mean_square),
        }
    }

    /// The largest difference that this noise explains.
    pub fn tolerance(self) -> f64 {
        NOISE_FACTOR * self.largest
    }

    /// Whether `noise` explains this difference; a NaN difference is never explained.
    pub fn is_explained_by(self, noise: Self) -> bool {
        self.largest <= noise.tolerance() && self.root_mean_square <= NOISE_FACTOR * noise.root_mean_square
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;

    #[test]
    fn nan_is_the_largest_difference() {
        let tensor = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap();
        let found = LogitDifference::of(&tensor([1.0, 2.0, 3.0]), &tensor([1.0, 5.0, 7.0])).unwrap();
        assert_eq!((found.largest, found.root_mean_square), (4.0, (25.0_f64 / 3.0).sqrt()));
        let broken = LogitDifference::of(&tensor([f32::NAN, 2.0, 3.0]), &tensor([1.0, 5.0, 7.0])).unwrap();
        assert!(broken.largest.is_nan() && !broken.is_explained_by(found));
    }

    #[test]
    fn a_difference_everywhere_is_found_beside_a_noisy_token() {
        let noise = LogitDifference { largest: 1.0, root_mean_square: 1e-3 };
        assert!(LogitDifference { largest: 2.0, root_mean_square: 2e-3 }.is_explained_by(noise));
        assert!(!LogitDifference { largest: 0.5, root_mean_square: 0.1 }.is_explained_by(noise));
    }
}
