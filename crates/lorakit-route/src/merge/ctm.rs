//! Compress-then-merge (<https://arxiv.org/abs/2606.03723>): deltas are compressed to a rank together, then merged, so
//! that nothing is cut off from what was merged.
//!
//! With norms `n_i = |D_i|_F` of mean m and `X_i = (beta n_i + (1 - beta) m) D_i / n_i`, orthonormal `P: [out, r]` and
//! `Q: [in, r]` maximize `sum_i |P' X_i Q|_F^2`; the cores `P' D_i Q` are merged by another merge, and
//! `W = P merge(P' D_i Q) Q'`. At `beta=0` all experts count alike, at `beta=1` by their norms. It is solved in the
//! coordinates of Core Space (<https://arxiv.org/abs/2509.17786>), where it is the same problem, only smaller.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::inner_merge::{inner_defaults, inner_text, read_inner};
use crate::merge::low_rank_product::{LowRankProduct, widened_a, widened_b};
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::{Merged, Retained};
use crate::merge::module::{Footprint, MergedModule, Module, ModuleExpert, each_module};
use crate::merge::rank::Rank;
use crate::merge::shared_basis::{input_axes, merged_in_basis, output_axes};
use crate::merge::task_vectors::TaskVectors;
use crate::merge::tucker::{TuckerFactors, TuckerStop, tucker_factors};
use crate::method_info::MethodInfo;
use crate::method_settings::Settings;
use faer::{Mat, Scale};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `ctm`.
pub static CTM: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "ctm",
    aliases: &[],
    summary: "compress-then-merge: another merge in the directions that keep most of all deltas at a rank",
    link: Some("https://arxiv.org/abs/2606.03723"),
    defaults: |_| inner_defaults::<CompressThenMergeSettings>(),
    parse: |name, typed| {
        let (inner, settings) = read_inner(name, typed)?;
        Ok(Arc::new(CompressThenMerge { inner, settings }))
    },
    version: 1,
};

/// The merge `ctm`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CompressThenMerge {
    /// How the cores are merged.
    pub inner: TaskVectors,
    /// Its own settings.
    pub settings: CompressThenMergeSettings,
}

/// The settings of [`CompressThenMerge`] besides those of the inner merge.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompressThenMergeSettings {
    /// The rank that deltas are compressed to, of outputs and of inputs; that of the result.
    pub rank: Rank,
    /// How much an expert counts by its norm when directions are chosen, from 0 to 1.
    pub beta: f64,
    /// When the search for directions stops.
    pub stop: TuckerStop,
}

impl Default for CompressThenMergeSettings {
    fn default() -> Self {
        Self { rank: Rank::Largest, beta: 0.25, stop: TuckerStop::default() }
    }
}

impl Settings for CompressThenMergeSettings {
    const ALIASES: &'static [(&'static str, &'static str)] = &[("merge", "inner")];

    fn validate(&self) -> Result<(), String> {
        if (0.0..=1.0).contains(&self.beta) { Ok(()) } else { Err(format!("beta={} must lie from 0 to 1", self.beta)) }
    }
}

impl fmt::Display for CompressThenMerge {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", CTM.name, inner_text(&self.inner, &self.settings))
    }
}

impl MergeMethod for CompressThenMerge {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &CTM
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        each_module(experts, coefficients, Footprint::LowRank, |module| self.merge_module(module))
    }

    fn warning(&self, _experts: usize) -> Option<String> {
        self.inner.nothing_dropped(self)
    }

    fn changed_factor(&self) -> Option<(&'static str, f64)> {
        self.inner.changed_factor()
    }

    fn counts_weight_zero(&self) -> bool {
        // Directions are chosen without experts of weight zero.
        self.inner.counts_weight_zero()
    }

    fn averages(&self) -> bool {
        self.inner.averages()
    }
}

impl CompressThenMerge {
    fn merge_module(&self, module: &Module) -> Result<MergedModule> {
        let (left, right) = (output_axes(module)?, input_axes(module)?);
        let core = |part: &ModuleExpert| {
            let b = left.transpose() * widened_b(part.update, part.update.scale());
            b * (widened_a(part.update) * &right)
        };
        let cores: Vec<Mat<f64>> = module.parts.iter().map(core).collect();
        let ranks = [left.ncols(), right.ncols()].map(|most| self.settings.rank.at(module, most));
        let normalized = self.normalized(module, &cores);
        if ranks.contains(&0) || normalized.iter().all(|matrix| matrix.norm_l2() == 0.0) {
            let (b, a) = (Mat::zeros(module.output, 0), Mat::zeros(0, module.input));
            return LowRankProduct { b, a }.exact(module);
        }
        let common = tucker_factors(module, &normalized, ranks, self.settings.stop)?;
        let TuckerFactors { left: p, right: q, kept } = common;
        let compressed = cores.iter().map(|core| p.transpose() * core * &q).collect();
        let merged = merged_in_basis(&self.inner, module, compressed);
        let (p, q) = (&left * p, &right * q);
        // The smaller side of the core is the rank.
        let product = if merged.nrows() <= merged.ncols() {
            LowRankProduct { a: merged * q.transpose(), b: p }
        } else {
            LowRankProduct { b: p * merged, a: q.transpose().to_owned() }
        };
        let is_whole = ranks == [left.ncols(), right.ncols()];
        let retained = if is_whole { Retained::ALL } else { Retained::of(kept, (1.0 - kept).max(0.0)) };
        Ok(MergedModule { retained, ..product.exact(module)? })
    }

    /// The matrices with norms between their own and the mean. Those of experts of weight zero become zero; zeros stay, and
    /// have no part in the mean.
    fn normalized(&self, module: &Module, matrices: &[Mat<f64>]) -> Vec<Mat<f64>> {
        let norm = |(part, matrix): (&ModuleExpert, &Mat<f64>)| if part.weight == 0.0 { 0.0 } else { matrix.norm_l2() };
        let norms: Vec<f64> = module.parts.iter().zip(matrices).map(norm).collect();
        let count = norms.iter().filter(|norm| **norm > 0.0).count();
        let mean = norms.iter().sum::<f64>() / count.max(1) as f64;
        let factor =
            |norm: f64| if norm > 0.0 { self.settings.beta + (1.0 - self.settings.beta) * mean / norm } else { 0.0 };
        matrices.iter().zip(norms).map(|(matrix, norm)| matrix * Scale(factor(norm))).collect()
    }
}
