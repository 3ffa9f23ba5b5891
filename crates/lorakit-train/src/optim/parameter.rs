//! A trained variable whose rows may belong to several experts, with its AdamW moments.

use crate::error::{Result, TrainError};
use candle_core::{DType, Tensor, Var};
use lorakit_lora::kernels::cpu_tensor;
use rayon::prelude::*;
use std::ops::Range;

/// A variable, read as `[rows, columns]`, whose rows are divided among experts: each expert has its own gradient norm,
/// clipping, learning rate and moments.
pub struct Parameter {
    name: String,
    variable: Var,
    /// First and second moments, `[2, rows, columns]`.
    moments: Tensor,
    pub(crate) segments: Vec<(usize, Range<usize>)>,
    pub(crate) columns: usize,
    /// Factor on the learning rate of the experts.
    pub(crate) lr_factor: f64,
    /// Factor on the weight decay.
    pub(crate) decay_factor: f64,
}

/// Values that are summed by one thread. Fixed, so that a norm does not depend on the number of threads.
const CHUNK: usize = 1 << 14;

impl Parameter {
    /// A variable with the row ranges (`segments`) that belong to each expert, by its index.
    pub fn new(name: String, variable: Var, segments: Vec<(usize, Range<usize>)>) -> Result<Self> {
        let rows = variable.dim(0)?;
        let columns = variable.elem_count() / rows.max(1);
        if segments.iter().any(|(_, s)| s.end > rows) {
            return Err(TrainError::Segments { name, rows });
        }
        let moments = Tensor::zeros((2, rows, columns), DType::F32, variable.device())?;
        Ok(Self { name, variable, moments, segments, columns, lr_factor: 1.0, decay_factor: 1.0 })
    }

    /// A variable whose rows all belong to expert `owner`.
    pub fn whole(name: String, variable: Var, owner: usize) -> Result<Self> {
        let segments = vec![(owner, 0..variable.dim(0)?)];
        Self::new(name, variable, segments)
    }

    /// Sets the factor on the learning rate.
    pub fn with_lr_factor(self, lr_factor: f64) -> Self {
        Self { lr_factor, ..self }
    }

    /// Sets the factor on the weight decay; 0 where a parameter does not decay.
    pub fn with_decay_factor(self, decay_factor: f64) -> Self {
        Self { decay_factor, ..self }
    }

    /// The name in messages and checkpoints.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variable.
    pub fn variable(&self) -> &Var {
        &self.variable
    }

    /// First and second moments, `[2, rows, columns]`.
    pub fn moments(&self) -> &Tensor {
        &self.moments
    }

    /// Replaces the moments by saved ones.
    pub fn set_moments(&mut self, moments: Tensor) -> Result<()> {
        if moments.shape() != self.moments.shape() {
            return Err(TrainError::MomentsShape {
                name: self.name.clone(),
                found: moments.shape().clone(),
                expected: self.moments.shape().clone(),
            });
        }
        self.moments = moments;
        Ok(())
    }

    /// Adds each expert's squared gradient norm to `squares`, indexed by expert.
    pub fn add_squared_norms(&self, gradient: &Tensor, squares: &mut [f64]) -> Result<()> {
        let gradient = gradient.contiguous()?;
        if !gradient.device().is_cpu() {
            return self.add_squared_norms_composed(&gradient, squares);
        }
        cpu_tensor::with_values(&gradient, "gradient norm", |values| {
            for (expert, rows) in &self.segments {
                let part = &values[rows.start * self.columns..rows.end * self.columns];
                let sums: Vec<f64> =
                    part.par_chunks(CHUNK).map(|c| c.iter().map(|&g| f64::from(g) * f64::from(g)).sum()).collect();
                squares[*expert] += sums.iter().sum::<f64>();
            }
        })?;
        Ok(())
    }

    /// [`Parameter::add_squared_norms`] composed of candle ops: one value per row is copied from the device.
    fn add_squared_norms_composed(&self, gradient: &Tensor, squares: &mut [f64]) -> Result<()> {
        let rows = gradient.reshape((gradient.elem_count() / self.columns.max(1), self.columns))?.sqr()?.sum(1)?;
        let rows: Vec<f32> = rows.to_vec1()?;
        for (expert, own) in &self.segments {
            squares[*expert] += rows[own.clone()].iter().map(|&square| f64::from(square)).sum::<f64>();
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use candle_core::Device;
    use lorakit_format::rng::Key;

    const ROWS: usize = 7;
    pub(crate) const COLUMNS: usize = 5;

    pub(crate) fn values(seed: u64) -> Tensor {
        let mut stream = Key::new(seed, "test").stream();
        let values: Vec<f32> = (0..ROWS * COLUMNS).map(|_| 2.0 * stream.uniform() - 1.0).collect();
        Tensor::from_vec(values, (ROWS, COLUMNS), &Device::Cpu).unwrap()
    }

    /// Three experts of different rank, and a row between them without an owner.
    pub(crate) fn parameter() -> Parameter {
        let segments = vec![(0, 0..2), (1, 2..3), (2, 4..7)];
        Parameter::new("p".into(), Var::from_tensor(&values(1)).unwrap(), segments).unwrap().with_lr_factor(0.5)
    }

    #[test]
    fn composed_norms_equal_those_of_the_kernel() {
        let (mut kernel, mut composed) = ([1.0; 3], [1.0; 3]);
        parameter().add_squared_norms(&values(3), &mut kernel).unwrap();
        parameter().add_squared_norms_composed(&values(3), &mut composed).unwrap();
        assert!(
            kernel.iter().zip(composed).all(|(k, c)| k - 1.0 > 0.1 && (k - c).abs() < 1e-5 * k),
            "{kernel:?} {composed:?}"
        );
    }
}
