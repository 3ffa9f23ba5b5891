//! Pico (<https://arxiv.org/abs/2604.16826>): before any merge, output directions that several experts share are damped,
//! since a sum would count them once per expert; after it, the result gets the mean norm of the experts' deltas.
//!
//! With `C = sum_i D_i D_i' = U diag(sigma^2) U'`, the share `c_j = sigma_j^2 / sum sigma^2` and n experts,
//! `D_i <- (I + U diag(a - 1) U') D_i` with `a_j = 1 / (1 + (n - 1) c_j)`. Only B changes, so ranks stay. The authors' code
//! takes `C = sum_i B_i B_i'` (`basis=factors`), without scales: refactoring an adapter as `(B R^-1, R A)` then changes the
//! result.
//!
//! An expert that leaves a module as it is shares nothing there, and is not counted. The mean of the norms is weighted by
//! the magnitudes of the experts' weights, whose common factor therefore has no effect on a sum.

use crate::error::{Result, RouteError};
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::low_rank_product::widened_b;
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::Merged;
use crate::merge::module::{Module, ModuleExpert, paths};
use crate::merge::shared_basis::{Basis, Directions, factor_directions, output_directions};
use crate::method_info::{self, MethodInfo};
use crate::method_settings::{Settings, defaults, read, write};
use faer::Mat;
use lorakit_adapter::{LowRank, Matrix};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// All calibrations: what is done to experts before a merge, and to its result.
pub static CALIBRATIONS: &[&MethodInfo<PicoCalibration>] = &[&PICO];

/// Reads a calibration from `NAME` or `NAME:KEY=VALUE,...`.
///
/// # Errors
/// An unknown name, or settings that the calibration refuses.
pub fn parse_calibration(typed: &str) -> Result<Arc<PicoCalibration>> {
    method_info::parse("calibration", CALIBRATIONS, typed)
}

/// The calibration `pico`.
pub static PICO: MethodInfo<PicoCalibration> = MethodInfo {
    name: "pico",
    aliases: &[],
    summary: "damp the output directions that experts share, and give the result the mean of their norms",
    link: Some("https://arxiv.org/abs/2604.16826"),
    defaults: defaults::<PicoCalibration>,
    parse: |name, typed| Ok(Arc::new(read::<PicoCalibration>(name, typed)?)),
    version: 1,
};

/// The calibration `pico`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PicoCalibration {
    /// What shared directions are computed from.
    pub basis: Basis,
}

impl Settings for PicoCalibration {}

impl fmt::Display for PicoCalibration {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, PICO.name, self)
    }
}

impl PicoCalibration {
    /// Merges the calibrated experts, and gives each module of the result the mean norm of the experts' deltas.
    ///
    /// # Errors
    /// As the merge itself.
    pub fn merge(&self, merge: &dyn MergeMethod, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        let merged = merge.merge(&self.calibrated(experts)?, coefficients)?;
        let rescaled = |(path, update): (&String, &LowRank)| {
            let module = Module::of(path, experts, coefficients)?;
            let (norm, mean) = (update.norm(), mean_norm(&module));
            // Without weights there is no mean, and zero has no direction.
            let factor = if norm > 0.0 { mean.map_or(1.0, |mean| mean / norm) } else { 1.0 };
            Ok((path.clone(), with_b(&module, update, &widened_b(update, factor))?))
        };
        let updates = merged.adapter.modules().par_iter().map(rescaled).collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Merged { adapter: merged.adapter.with_updates(updates), report: merged.report })
    }

    /// The experts with shared output directions damped; their ranks and A's stay.
    ///
    /// # Errors
    /// If the experts differ in the shape of a module, or a decomposition fails.
    pub fn calibrated(&self, experts: &[Expert]) -> Result<Vec<Expert>> {
        let each = Coefficients::ones(experts.len());
        let paths: Vec<&str> = paths(experts).into_iter().collect();
        let damped = paths.par_iter().map(|path| self.damped(&Module::of(path, experts, &each)?));
        let damped: Vec<Vec<(usize, LowRank)>> = damped.collect::<Result<_>>()?;
        let mut updates: Vec<BTreeMap<String, LowRank>> = vec![BTreeMap::new(); experts.len()];
        for (path, of_module) in paths.iter().zip(damped) {
            for (expert, update) in of_module {
                updates[expert].insert((*path).to_owned(), update);
            }
        }
        let with = |(expert, updates): (&Expert, _)| {
            Expert::new(expert.name.clone(), expert.adapter.clone().with_updates(updates))
        };
        Ok(experts.iter().zip(updates).map(with).collect())
    }

    /// Each expert's update of a module with shared directions damped.
    fn damped(&self, module: &Module) -> Result<Vec<(usize, LowRank)>> {
        let changing = module.parts.iter().filter(|part| part.update.norm() > 0.0).count();
        if changing <= 1 {
            return Ok(module.parts.iter().map(|part| (part.expert, part.update.clone())).collect());
        }
        let Directions { vectors, values } = match self.basis {
            Basis::Deltas => output_directions(module)?,
            Basis::Factors => factor_directions(module)?,
        };
        let total: f64 = values.iter().map(|value| value * value).sum();
        let less = |value: &f64| 1.0 / (1.0 + (changing - 1) as f64 * value * value / total) - 1.0;
        let less: Vec<f64> = values.iter().map(less).collect();
        let damp = |part: &ModuleExpert| {
            let b = widened_b(part.update, 1.0);
            let inside = vectors.transpose() * &b;
            let change = Mat::from_fn(inside.nrows(), inside.ncols(), |row, column| less[row] * inside[(row, column)]);
            Ok((part.expert, with_b(module, part.update, &(b + &vectors * change))?))
        };
        module.parts.iter().map(damp).collect()
    }
}

/// The mean norm of the experts' deltas, weighted by the magnitudes of their weights, over those that change the module.
fn mean_norm(module: &Module) -> Option<f64> {
    let (mut sum, mut weights) = (0.0, 0.0);
    for part in &module.parts {
        let norm = part.update.norm();
        if norm > 0.0 {
            sum += part.weight.abs() * norm;
            weights += part.weight.abs();
        }
    }
    (weights > 0.0).then(|| sum / weights)
}

/// The same update with another B.
fn with_b(module: &Module, update: &LowRank, b: &Mat<f64>) -> Result<LowRank> {
    let values = (0..b.nrows()).flat_map(|row| (0..b.ncols()).map(move |column| b[(row, column)] as f32)).collect();
    let made = || LowRank::new(update.a().clone(), Matrix::new(b.nrows(), b.ncols(), values)?, update.scale());
    made().map_err(|source| RouteError::MergedMatrix { module: module.path.to_owned(), source: Box::new(source) })
}
