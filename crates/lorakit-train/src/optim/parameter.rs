//! A trained variable whose rows belong to experts, with its moments.

use anyhow::{Result, ensure};
use candle_core::{CpuStorage, InplaceOp2, Layout, Result as CandleResult, Tensor, Var, bail};
use lorakit_lora::kernels::cpu_tensor;
use rayon::prelude::*;
use std::ops::Range;

/// A variable, read as `[rows, columns]`, whose rows are shared out among experts: gradients, clipping, schedule and
/// moments are each expert's own.
pub struct Parameter {
    name: String,
    variable: Var,
    /// First and second moments, `[2, rows, columns]`.
    moments: Tensor,
    segments: Vec<(usize, Range<usize>)>,
    columns: usize,
    /// What the experts' rates are multiplied by.
    rate: f64,
}

/// What one expert's update does to its rows.
#[derive(Clone, Copy, Debug)]
pub struct AdamWUpdate {
    /// The learning rate at this step.
    pub rate: f64,
    /// The factor that clips the gradient.
    pub clip: f64,
    /// The number of this update, from one.
    pub number: usize,
    /// AdamW's decay.
    pub weight_decay: f64,
}

pub(crate) const BETA1: f64 = 0.9;
pub(crate) const BETA2: f64 = 0.999;
pub(crate) const EPSILON: f64 = 1e-8;

impl Parameter {
    /// A variable whose `segments` of rows belong to experts.
    pub fn new(name: String, variable: Var, segments: Vec<(usize, Range<usize>)>) -> Result<Self> {
        let rows = variable.dim(0)?;
        let columns = variable.elem_count() / rows.max(1);
        ensure!(segments.iter().all(|(_, s)| s.end <= rows), "segments beyond the {rows} rows of {name}");
        let moments = Tensor::zeros((2, rows, columns), candle_core::DType::F32, variable.device())?;
        Ok(Self { name, variable, moments, segments, columns, rate: 1.0 })
    }

    /// The same at another rate: that of its experts times `factor`.
    pub fn at_rate(self, factor: f64) -> Self {
        Self { rate: factor, ..self }
    }

    /// Its name, for messages and checkpoints.
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

    /// Puts saved moments in the place of the present ones.
    pub fn set_moments(&mut self, moments: Tensor) -> Result<()> {
        ensure!(
            moments.shape() == self.moments.shape(),
            "moments of {} have shape {:?}, expected {:?}",
            self.name,
            moments.shape(),
            self.moments.shape()
        );
        self.moments = moments;
        Ok(())
    }

    /// Adds the squared norm of each expert's part of `gradient` to `squares`.
    pub fn add_squares(&self, gradient: &Tensor, squares: &mut [f64]) -> Result<()> {
        let gradient = gradient.contiguous()?;
        if !gradient.device().is_cpu() {
            return self.plain_add_squares(&gradient, squares);
        }
        cpu_tensor::with_values(&gradient, "gradient norm", |values| {
            for (expert, rows) in &self.segments {
                let part = &values[rows.start * self.columns..rows.end * self.columns];
                // Fixed chunks, folded in order: the sum does not depend on the number of threads.
                let sums: Vec<f64> =
                    part.par_chunks(1 << 14).map(|c| c.iter().map(|&g| f64::from(g) * f64::from(g)).sum()).collect();
                squares[*expert] += sums.iter().sum::<f64>();
            }
        })?;
        Ok(())
    }

    /// One step of AdamW (Loshchilov and Hutter, arXiv 1711.05101; torch's form) for the experts that have one:
    ///
    /// `m = β1 m + (1 - β1) g`, `v = β2 v + (1 - β2) g²`,
    /// `p = p (1 - lr λ) - lr (m / (1 - β1ᵗ)) / (sqrt(v / (1 - β2ᵗ)) + ε)`.
    pub fn step(&self, gradient: &Tensor, updates: &[Option<AdamWUpdate>]) -> Result<()> {
        let parts = || {
            self.segments
                .iter()
                .filter_map(|(e, rows)| Some((rows.start * self.columns..rows.end * self.columns, updates[*e]?)))
                .map(|(part, update)| (part, AdamWUpdate { rate: update.rate * self.rate, ..update }))
        };
        let parts: Vec<(Range<usize>, AdamWUpdate)> = parts().collect();
        if !gradient.device().is_cpu() {
            return self.plain_step(gradient, &parts);
        }
        self.moments.inplace_op2(&gradient.contiguous()?, &Moments { parts: &parts })?;
        self.variable.as_tensor().inplace_op2(&self.moments, &Apply { parts: &parts })?;
        Ok(())
    }

    /// The same as [`Parameter::add_squares`] by candle's own ops: one number for each row comes back from the device.
    fn plain_add_squares(&self, gradient: &Tensor, squares: &mut [f64]) -> Result<()> {
        let rows = gradient.reshape((gradient.elem_count() / self.columns.max(1), self.columns))?.sqr()?.sum(1)?;
        let rows: Vec<f32> = rows.to_vec1()?;
        for (expert, own) in &self.segments {
            squares[*expert] += rows[own.clone()].iter().map(|&square| f64::from(square)).sum::<f64>();
        }
        Ok(())
    }
}

/// Moves the moments toward a gradient.
struct Moments<'a> {
    parts: &'a [(Range<usize>, AdamWUpdate)],
}

const CHUNK: usize = 1 << 14;

impl InplaceOp2 for Moments<'_> {
    fn name(&self) -> &'static str {
        "adamw-moments"
    }

    fn cpu_fwd(&self, moments: &mut CpuStorage, lm: &Layout, gradient: &CpuStorage, lg: &Layout) -> CandleResult<()> {
        let g = cpu_tensor::values(gradient, lg, self.name())?;
        let moments = cpu_tensor::values_mut(moments, lm, self.name())?;
        if moments.len() != 2 * g.len() {
            bail!("{} moments for {} gradients", moments.len(), g.len());
        }
        let (m, v) = moments.split_at_mut(g.len());
        for (part, update) in self.parts {
            let clip = update.clip as f32;
            let (b1, b2) = (BETA1 as f32, BETA2 as f32);
            let slices = m[part.clone()]
                .par_chunks_mut(CHUNK)
                .zip(v[part.clone()].par_chunks_mut(CHUNK))
                .zip(g[part.clone()].par_chunks(CHUNK));
            slices.for_each(|((m, v), g)| {
                for ((m, v), &g) in m.iter_mut().zip(v).zip(g) {
                    let g = g * clip;
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                }
            });
        }
        Ok(())
    }
}

/// Moves the parameters along the moments.
struct Apply<'a> {
    parts: &'a [(Range<usize>, AdamWUpdate)],
}

impl InplaceOp2 for Apply<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, lp: &Layout, moments: &CpuStorage, lm: &Layout) -> CandleResult<()> {
        let p = cpu_tensor::values_mut(p, lp, self.name())?;
        let (m, v) = cpu_tensor::values(moments, lm, self.name())?.split_at(p.len());
        for (part, update) in self.parts {
            let t = update.number as i32;
            let step = (update.rate / (1.0 - BETA1.powi(t))) as f32;
            let root = (1.0 / (1.0 - BETA2.powi(t)).sqrt()) as f32;
            let keep = (1.0 - update.rate * update.weight_decay) as f32;
            let slices = p[part.clone()]
                .par_chunks_mut(CHUNK)
                .zip(m[part.clone()].par_chunks(CHUNK))
                .zip(v[part.clone()].par_chunks(CHUNK));
            slices.for_each(|((p, m), v)| {
                for ((p, &m), &v) in p.iter_mut().zip(m).zip(v) {
                    *p = *p * keep - step * m / (v.sqrt() * root + EPSILON as f32);
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use candle_core::{D, Device};
    use lorakit_format::rng::Key;

    const ROWS: usize = 7;
    const COLUMNS: usize = 5;

    fn values(seed: u64) -> Tensor {
        let mut stream = Key::new(seed, "test").stream();
        let values: Vec<f32> = (0..ROWS * COLUMNS).map(|_| 2.0 * stream.uniform() - 1.0).collect();
        Tensor::from_vec(values, (ROWS, COLUMNS), &Device::Cpu).unwrap()
    }

    /// Three experts of unequal rank, with a row between them that is nobody's; the second is not updated.
    fn parameter() -> Parameter {
        let segments = vec![(0, 0..2), (1, 2..3), (2, 4..7)];
        Parameter::new("p".into(), Var::from_tensor(&values(1)).unwrap(), segments).unwrap().at_rate(0.5)
    }

    fn updates(number: usize) -> [Option<AdamWUpdate>; 3] {
        let update = |rate, clip| Some(AdamWUpdate { rate, clip, number, weight_decay: 0.1 });
        [update(0.1, 1.0), None, update(0.02, 0.3)]
    }

    fn difference(one: &Tensor, other: &Tensor) -> f32 {
        (one - other).unwrap().abs().unwrap().flatten_all().unwrap().max(D::Minus1).unwrap().to_scalar().unwrap()
    }

    /// A gradient in which the expert that is not updated has what is no number.
    fn gradient(number: usize) -> Tensor {
        let gradient = values(10 + number as u64);
        gradient.slice_set(&Tensor::full(f32::NAN, (1, COLUMNS), &Device::Cpu).unwrap(), 0, 2).unwrap();
        gradient
    }

    #[test]
    fn plain_steps_are_those_of_the_kernel() {
        let (kernel, plain) = (parameter(), parameter());
        for number in 1..=4 {
            kernel.step(&gradient(number), &updates(number)).unwrap();
            let parts: Vec<(Range<usize>, AdamWUpdate)> = plain
                .segments
                .iter()
                .filter_map(|(e, rows)| Some((rows.start * COLUMNS..rows.end * COLUMNS, updates(number)[*e]?)))
                .map(|(part, update)| (part, AdamWUpdate { rate: update.rate * 0.5, ..update }))
                .collect();
            plain.plain_step(&gradient(number), &parts).unwrap();
            assert!(difference(kernel.variable(), plain.variable()) < 1e-6);
            assert!(difference(kernel.moments(), plain.moments()) < 1e-6);
        }
        let moved = (kernel.variable().as_tensor() - values(1)).unwrap().abs().unwrap().sum(1).unwrap();
        let moved: Vec<bool> = moved.to_vec1::<f32>().unwrap().iter().map(|&by| by > 0.01).collect();
        assert_eq!(moved, [true, true, false, false, true, true, true]);
    }

    #[test]
    fn plain_norms_are_those_of_the_kernel() {
        let (mut kernel, mut plain) = ([1.0; 3], [1.0; 3]);
        parameter().add_squares(&values(3), &mut kernel).unwrap();
        parameter().plain_add_squares(&values(3), &mut plain).unwrap();
        assert!(
            kernel.iter().zip(plain).all(|(k, p)| k - 1.0 > 0.1 && (k - p).abs() < 1e-5 * k),
            "{kernel:?} {plain:?}"
        );
    }
}
