//! KnOTS (Stoica et al. 2025, <https://arxiv.org/abs/2410.19735>): deltas are merged in a common output basis:
//! with `[D_1 | ... | D_n] = U S [V_1 | ... | V_n]`, the `S V_i` are merged, and `W = U merge(S V_i)`.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::inner_merge::{inner_defaults, inner_text, read_inner};
use crate::merge::low_rank_product::{LowRankProduct, widened_a, widened_b};
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::Merged;
use crate::merge::module::{Footprint, MergedModule, Module, ModuleExpert, each_module};
use crate::merge::rank::Rank;
use crate::merge::shared_basis::{merged_in_basis, output_axes};
use crate::merge::task_vectors::TaskVectors;
use crate::method_info::MethodInfo;
use crate::method_settings::Settings;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `knots`.
pub static KNOTS: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "knots",
    aliases: &[],
    summary: "another merge in a common basis of outputs",
    link: Some("https://arxiv.org/abs/2410.19735"),
    defaults: |_| inner_defaults::<KnotsSettings>(),
    parse: |name, typed| {
        let (inner, settings) = read_inner(name, typed)?;
        Ok(Arc::new(Knots { inner, settings }))
    },
    version: 1,
};

/// The merge `knots`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Knots {
    /// How aligned deltas are merged.
    pub inner: TaskVectors,
    /// Its own settings.
    pub settings: KnotsSettings,
}

/// The settings of [`Knots`] besides those of the inner merge.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnotsSettings {
    /// The rank of the result.
    pub rank: Rank,
}

impl Default for KnotsSettings {
    fn default() -> Self {
        Self { rank: Rank::Full }
    }
}

impl Settings for KnotsSettings {}

impl fmt::Display for Knots {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", KNOTS.name, inner_text(&self.inner, &self.settings))
    }
}

impl MergeMethod for Knots {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &KNOTS
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
        self.inner.depends_on_basis()
    }

    fn averages(&self) -> bool {
        self.inner.averages()
    }
}

impl Knots {
    fn merge_module(&self, module: &Module) -> Result<MergedModule> {
        let basis = output_axes(module)?;
        let aligned = |part: &ModuleExpert| {
            let b = widened_b(part.update, part.update.scale());
            basis.transpose() * b * widened_a(part.update)
        };
        let a = merged_in_basis(&self.inner, module, module.parts.iter().map(aligned).collect());
        LowRankProduct { b: basis, a }.truncated(module, self.settings.rank)
    }
}
