//! Pico (<https://arxiv.org/abs/2604.16826>): before any merge, output directions that several experts share are damped,
//! since a sum would count them once per expert; after it, the result gets the mean norm of the experts' deltas.
//!
//! With `C = sum_i D_i D_i' = U diag(sigma^2) U'`, the share `c_j = sigma_j^2 / sum sigma^2` and n experts,
//! `D_i <- (I + U diag(a - 1) U') D_i` with `a_j = 1 / (1 + (n - 1) c_j)`. Only B changes, so ranks stay. The authors' code
//! takes `C = sum_i B_i B_i'` (`basis=factors`), without scales: refactoring an adapter as `(B R^-1, R A)` then changes the
//! result.
//!
//! An expert that leaves a module as it is, or has weight zero, shares nothing there, and is not counted. The mean of the
//! norms is weighted by the magnitudes of the experts' weights, whose common factor therefore has no effect on a sum. Nor
//! has a factor of the merge, such as `scale=` of a task vector or `factor=` of `robust`. A result of at most 1e-6 of the sum
//! of the norms is what rounding leaves of deltas that cancel, and keeps its norm.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::low_rank_product::{single_precision, widened_b};
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::Merged;
use crate::merge::module::{Module, ModuleExpert, paths};
use crate::merge::shared_basis::{Basis, LeftSingularVectors, factor_directions, output_directions};
use crate::method_info::{self, MethodInfo};
use crate::method_settings::{Settings, defaults, read, write};
use crate::ordered_results::ordered_results;
use faer::Mat;
use lorakit_adapter::LowRank;
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
        let merged = merge.merge(&self.calibrated(experts, coefficients)?, coefficients)?;
        let rescaled = |(path, update): (&String, &LowRank)| -> Result<_> {
            let module = Module::of(path, experts, coefficients)?;
            let b = widened_b(update, factor_to_mean(&module, update.norm()));
            Ok((path.clone(), module.with_b(update, single_precision(b.as_ref()))?))
        };
        let modules: Vec<(&String, &LowRank)> = merged.adapter.modules().iter().collect();
        let updates = ordered_results(modules.into_par_iter().map(rescaled))?.into_iter().collect();
        Ok(Merged { adapter: merged.adapter.with_updates(updates), report: merged.report })
    }

    /// A warning about settings of a merge that only multiply its result, whose norm is then replaced.
    pub fn warning(&self, merge: &dyn MergeMethod) -> Option<String> {
        let (key, value) = merge.changed_factor()?;
        Some(format!(
            "{merge}: under {self}, the result has the mean norm of the experts' deltas, whatever {key}={value}"
        ))
    }

    /// The experts with shared output directions damped; their ranks and A's stay. Those of weight zero share nothing, and
    /// stay as they are.
    ///
    /// # Errors
    /// If weights are not one finite number per expert, the experts differ in the shape of a module, or a decomposition fails.
    pub fn calibrated(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Vec<Expert>> {
        coefficients.check(experts)?;
        let paths: Vec<&str> = paths(experts).into_iter().collect();
        let damped = paths.par_iter().map(|path| self.damped(&Module::of(path, experts, coefficients)?));
        let damped: Vec<Vec<(usize, LowRank)>> = ordered_results(damped)?;
        let mut updates: Vec<BTreeMap<String, LowRank>> = vec![BTreeMap::new(); experts.len()];
        for (path, of_module) in paths.iter().zip(damped) {
            for (expert, update) in of_module {
                updates[expert].insert((*path).to_owned(), update);
            }
        }
        let with = |(expert, updates): (&Expert, _)| Expert {
            name: expert.name.clone(),
            adapter: expert.adapter.clone().with_updates(updates),
            tasks: expert.tasks.clone(),
        };
        Ok(experts.iter().zip(updates).map(with).collect())
    }

    /// Each expert's update of a module, with shared directions damped among those that change it.
    fn damped(&self, module: &Module) -> Result<Vec<(usize, LowRank)>> {
        let mut changing = module.of_summands();
        changing.parts.retain(|part| part.update.norm() > 0.0);
        let others = changing.parts.len().saturating_sub(1);
        if others == 0 {
            return Ok(module.parts.iter().map(|part| (part.expert, part.update.clone())).collect());
        }
        let LeftSingularVectors { vectors, values } = match self.basis {
            Basis::Deltas => output_directions(&changing)?,
            Basis::Factors => factor_directions(&changing)?,
        };
        let total: f64 = values.iter().map(|value| value * value).sum();
        let damping = |value: &f64| 1.0 / (1.0 + others as f64 * value * value / total) - 1.0;
        let damping: Vec<f64> = values.iter().map(damping).collect();
        let damp = |part: &ModuleExpert| {
            if !changing.parts.iter().any(|of| of.expert == part.expert) {
                return Ok((part.expert, part.update.clone()));
            }
            let b = widened_b(part.update, 1.0);
            let inside = vectors.transpose() * &b;
            let change =
                Mat::from_fn(inside.nrows(), inside.ncols(), |row, column| damping[row] * inside[(row, column)]);
            let b = b + &vectors * change;
            Ok((part.expert, module.with_b(part.update, single_precision(b.as_ref()))?))
        };
        module.parts.iter().map(damp).collect()
    }
}

/// What gives a merged delta of norm `norm` the mean norm of the experts' deltas, weighted by the magnitudes of their weights,
/// over those that change the module. 1 without weights, where there is no mean, and where the deltas cancel: what remains
/// then is rounding noise.
fn factor_to_mean(module: &Module, norm: f64) -> f64 {
    const ROUNDING: f64 = 1e-6;
    let (mut sum, mut weights) = (0.0, 0.0);
    for part in &module.parts {
        let norm = part.update.norm();
        if norm > 0.0 {
            sum += part.weight.abs() * norm;
            weights += part.weight.abs();
        }
    }
    if sum > 0.0 && norm > ROUNDING * sum { sum / weights / norm } else { 1.0 }
}
