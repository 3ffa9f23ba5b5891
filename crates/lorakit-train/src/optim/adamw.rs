//! AdamW with per-expert learning rates and clipping: fused kernels on a CPU, candle ops elsewhere.

use crate::backward::gradients::Gradients;
use crate::error::{Result, TrainError};
use crate::optim::adamw_composed::composed_step;
use crate::optim::adamw_update::{AdamWUpdate, BETA1, BETA2, EPSILON};
use crate::optim::parameter::Parameter;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result as CandleResult, Tensor, Var, bail};
use lorakit_lora::kernels::cpu_tensor;
use rayon::prelude::*;
use std::ops::Range;

/// Values that one thread updates at a time.
const CHUNK: usize = 1 << 14;

/// The gradients of all parameters of an [`AdamW`], with each expert's norm.
pub struct CollectedGradients {
    by_parameter: Vec<Tensor>,
    /// The norm of each expert's gradient over all parameters, by expert.
    pub norms: Vec<f64>,
}

/// AdamW (Loshchilov and Hutter, <https://arxiv.org/abs/1711.05101>; torch's form) over parameters that one or several
/// experts own:
///
/// `m = β1 m + (1 - β1) g`, `v = β2 v + (1 - β2) g²`,
/// `p = p (1 - lr λ) - lr (m / (1 - β1ᵗ)) / (sqrt(v / (1 - β2ᵗ)) + ε)`.
pub struct AdamW {
    parameters: Vec<Parameter>,
    experts: usize,
}

impl AdamW {
    /// An optimizer of `parameters`, owned by `experts` experts.
    pub fn new(parameters: Vec<Parameter>, experts: usize) -> Self {
        Self { parameters, experts }
    }

    /// The parameters with their moments.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The parameters, to restore them from a checkpoint.
    pub(crate) fn parameters_mut(&mut self) -> &mut [Parameter] {
        &mut self.parameters
    }

    /// All variables, in the order of the parameters.
    pub fn variables(&self) -> Vec<Var> {
        self.parameters.iter().map(|parameter| parameter.variable().clone()).collect()
    }

    /// Collects the gradient of every parameter, and each expert's norm.
    ///
    /// # Errors
    /// If a parameter has no gradient.
    pub fn collect(&self, gradients: &Gradients) -> Result<CollectedGradients> {
        let mut squares = vec![0.0; self.experts];
        let mut by_parameter = Vec::with_capacity(self.parameters.len());
        for parameter in &self.parameters {
            let gradient = gradients
                .of(parameter.variable())?
                .ok_or_else(|| TrainError::NoGradient { name: parameter.name().to_owned() })?;
            parameter.add_squared_norms(&gradient, &mut squares)?;
            by_parameter.push(gradient);
        }
        Ok(CollectedGradients { by_parameter, norms: squares.into_iter().map(f64::sqrt).collect() })
    }

    /// One step for the experts that have an update; all others keep their values and moments.
    pub fn step(&self, gradients: &CollectedGradients, updates: &[Option<AdamWUpdate>]) -> Result<()> {
        let parameters = self.parameters.iter().zip(&gradients.by_parameter);
        parameters.into_iter().try_for_each(|(parameter, gradient)| update_parameter(parameter, gradient, updates))
    }
}

/// Updates one parameter.
fn update_parameter(parameter: &Parameter, gradient: &Tensor, updates: &[Option<AdamWUpdate>]) -> Result<()> {
    let parts = value_ranges(parameter, updates);
    if !gradient.device().is_cpu() {
        return composed_step(parameter, gradient, &parts);
    }
    parameter.moments().inplace_op2(&gradient.contiguous()?, &UpdateMoments { parts: &parts })?;
    parameter.variable().as_tensor().inplace_op2(parameter.moments(), &UpdateValues { parts: &parts })?;
    Ok(())
}

/// The ranges of a parameter's values that are updated, each with its update at the parameter's own rate and decay.
fn value_ranges(parameter: &Parameter, updates: &[Option<AdamWUpdate>]) -> Vec<(Range<usize>, AdamWUpdate)> {
    let columns = parameter.columns;
    let updated = parameter
        .segments
        .iter()
        .filter_map(|(expert, rows)| Some((rows.start * columns..rows.end * columns, updates[*expert]?)));
    let own = |update: AdamWUpdate| AdamWUpdate {
        lr: update.lr * parameter.lr_factor,
        weight_decay: update.weight_decay * parameter.decay_factor,
        ..update
    };
    updated.map(|(values, update)| (values, own(update))).collect()
}

/// Updates the moments with a clipped gradient.
struct UpdateMoments<'a> {
    parts: &'a [(Range<usize>, AdamWUpdate)],
}

impl InplaceOp2 for UpdateMoments<'_> {
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

/// Updates the values from the moments.
struct UpdateValues<'a> {
    parts: &'a [(Range<usize>, AdamWUpdate)],
}

impl InplaceOp2 for UpdateValues<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, lp: &Layout, moments: &CpuStorage, lm: &Layout) -> CandleResult<()> {
        let p = cpu_tensor::values_mut(p, lp, self.name())?;
        let (m, v) = cpu_tensor::values(moments, lm, self.name())?.split_at(p.len());
        for (part, update) in self.parts {
            let t = update.step as i32;
            let step_size = (update.lr / (1.0 - BETA1.powi(t))) as f32;
            let root = (1.0 / (1.0 - BETA2.powi(t)).sqrt()) as f32;
            let keep = (1.0 - update.lr * update.weight_decay) as f32;
            let slices = p[part.clone()]
                .par_chunks_mut(CHUNK)
                .zip(m[part.clone()].par_chunks(CHUNK))
                .zip(v[part.clone()].par_chunks(CHUNK));
            slices.for_each(|((p, m), v)| {
                for ((p, &m), &v) in p.iter_mut().zip(m).zip(v) {
                    *p = *p * keep - step_size * m / (v.sqrt() * root + EPSILON as f32);
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
    use crate::optim::parameter::tests::{COLUMNS, parameter, values};
    use candle_core::Device;

    /// The second expert is not updated.
    fn updates(number: usize) -> [Option<AdamWUpdate>; 3] {
        let update = |lr, clip| Some(AdamWUpdate { lr, clip, step: number, weight_decay: 0.1 });
        [update(0.1, 1.0), None, update(0.02, 0.3)]
    }

    fn difference(one: &Tensor, other: &Tensor) -> f32 {
        let differences: Vec<f32> = (one - other).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        differences.into_iter().map(f32::abs).max_by(f32::total_cmp).unwrap()
    }

    /// A gradient in which the rows of the expert that is not updated are NaN.
    fn gradient(number: usize) -> Tensor {
        let gradient = values(10 + number as u64);
        gradient.slice_set(&Tensor::full(f32::NAN, (1, COLUMNS), &Device::Cpu).unwrap(), 0, 2).unwrap();
        gradient
    }

    #[test]
    fn a_parameter_without_decay_moves_as_if_there_were_none() {
        let without = updates(1).map(|update| update.map(|update| AdamWUpdate { weight_decay: 0.0, ..update }));
        let (exempt, decays) = (parameter().with_decay_factor(0.0), parameter());
        update_parameter(&exempt, &gradient(1), &updates(1)).unwrap();
        update_parameter(&decays, &gradient(1), &updates(1)).unwrap();
        assert!(difference(exempt.variable(), decays.variable()) > 1e-3);
        let plain = parameter();
        update_parameter(&plain, &gradient(1), &without).unwrap();
        assert_eq!(difference(exempt.variable(), plain.variable()), 0.0);
    }

    #[test]
    fn composed_steps_equal_those_of_the_kernel() {
        let (kernel, composed) = (parameter(), parameter());
        for number in 1..=4 {
            update_parameter(&kernel, &gradient(number), &updates(number)).unwrap();
            composed_step(&composed, &gradient(number), &value_ranges(&composed, &updates(number))).unwrap();
            assert!(difference(kernel.variable(), composed.variable()) < 1e-6);
            assert!(difference(kernel.moments(), composed.moments()) < 1e-6);
        }
        let moved = (kernel.variable().as_tensor() - values(1)).unwrap().abs().unwrap().sum(1).unwrap();
        let moved: Vec<bool> = moved.to_vec1::<f32>().unwrap().iter().map(|&by| by > 0.01).collect();
        assert_eq!(moved, [true, true, false, false, true, true, true]);
    }
}
