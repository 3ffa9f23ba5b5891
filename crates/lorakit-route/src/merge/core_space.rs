//! Core Space (Panariello et al. 2025, <https://arxiv.org/abs/2509.17786>): deltas are merged in common output and
//! input bases. With orthonormal bases U of the outputs and V of the inputs, the `M_i = U' D_i V` are merged, and
//! `W = U merge(M_i) V'`.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::inner_merge::{inner_defaults, inner_text, read_inner};
use crate::merge::low_rank_product::{LowRankProduct, widened_a, widened_b};
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::Merged;
use crate::merge::module::{Footprint, MergedModule, Module, ModuleExpert, each_module};
use crate::merge::rank::Rank;
use crate::merge::shared_basis::{Basis, factor_axes, input_axes, merged_in_basis, output_axes};
use crate::merge::task_vectors::TaskVectors;
use crate::method_info::MethodInfo;
use crate::method_settings::Settings;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `core_space`.
pub static CORE_SPACE: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "core_space",
    aliases: &[],
    summary: "another merge in a common basis of outputs and inputs",
    link: Some("https://arxiv.org/abs/2509.17786"),
    defaults: |_| inner_defaults::<CoreSpaceSettings>(),
    parse: |name, typed| {
        let (inner, settings) = read_inner(name, typed)?;
        Ok(Arc::new(CoreSpace { inner, settings }))
    },
    version: 1,
};

/// The merge `core_space`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoreSpace {
    /// How the cores are merged.
    pub inner: TaskVectors,
    /// Its own settings.
    pub settings: CoreSpaceSettings,
}

/// The settings of [`CoreSpace`] besides those of the inner merge.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreSpaceSettings {
    /// How the common basis is computed.
    pub basis: Basis,
    /// The rank of the result.
    pub rank: Rank,
}

impl Default for CoreSpaceSettings {
    fn default() -> Self {
        Self { basis: Basis::default(), rank: Rank::Full }
    }
}

impl Settings for CoreSpaceSettings {}

impl fmt::Display for CoreSpace {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", CORE_SPACE.name, inner_text(&self.inner, &self.settings))
    }
}

impl MergeMethod for CoreSpace {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &CORE_SPACE
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

impl CoreSpace {
    fn merge_module(&self, module: &Module) -> Result<MergedModule> {
        let (left, right) = match self.settings.basis {
            Basis::Deltas => (output_axes(module)?, input_axes(module)?),
            Basis::Factors => factor_axes(module)?,
        };
        let core = |part: &ModuleExpert| {
            let b = left.transpose() * widened_b(part.update, part.update.scale());
            b * (widened_a(part.update) * &right)
        };
        let cores = merged_in_basis(&self.inner, module, module.parts.iter().map(core).collect());
        // The smaller side of the core is the rank.
        let product = if cores.nrows() <= cores.ncols() {
            LowRankProduct { a: cores * right.transpose(), b: left }
        } else {
            LowRankProduct { b: left * cores, a: right.transpose().to_owned() }
        };
        product.truncated(module, self.settings.rank)
    }
}
