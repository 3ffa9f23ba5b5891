//! Iso-C (Marczak et al. 2025, <https://arxiv.org/abs/2502.04959>): the sum of deltas with all its singular values set to
//! their mean, so that directions that few experts have are not drowned by those that all have.
//!
//! With `sum_i w_i D_i = U S V'` of rank m, `W = mean(S) U V'`. As published the mean is over `min(out, in)` values, where
//! null directions are arbitrary; here it is over the rank of the sum, as in Core Space (<https://arxiv.org/abs/2509.17786>).

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::low_rank_product::{LowRankProduct, squares};
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::{Merged, Retained};
use crate::merge::module::{Footprint, MergedModule, Module, each_module};
use crate::merge::rank::Rank;
use crate::merge::singular_triples::SingularTriples;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use faer::Scale;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `iso_c`.
pub static ISO_C: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "iso_c",
    aliases: &[],
    summary: "the sum of deltas with all singular values set to their mean",
    link: Some("https://arxiv.org/abs/2502.04959"),
    defaults: defaults::<IsoC>,
    parse: |name, typed| Ok(Arc::new(read::<IsoC>(name, typed)?)),
    version: 1,
};

/// The merge `iso_c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IsoC {
    /// The rank of the result: below that of the sum, only its largest directions are kept, and the mean is theirs.
    pub rank: Rank,
}

impl Default for IsoC {
    fn default() -> Self {
        Self { rank: Rank::Full }
    }
}

impl Settings for IsoC {}

impl fmt::Display for IsoC {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, ISO_C.name, self)
    }
}

impl MergeMethod for IsoC {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &ISO_C
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        each_module(experts, coefficients, Footprint::LowRank, |module| self.merge_module(module))
    }

    fn averages(&self) -> bool {
        true
    }
}

impl IsoC {
    fn merge_module(&self, module: &Module) -> Result<MergedModule> {
        let SingularTriples { left, values, right } =
            SingularTriples::of(module, &LowRankProduct::sum(module, 1.0), 0.0)?;
        let rank = self.rank.at(module, values.len());
        let mean = mean(&values[..rank]);
        let b = left.subcols(0, rank) * Scale(mean);
        let product = LowRankProduct { b, a: right.subcols(0, rank).transpose().to_owned() };
        let retained = Retained::of(squares(&values[..rank]), squares(&values[rank..]));
        Ok(MergedModule { retained, ..product.exact(module)? })
    }
}

/// The mean of singular values; 0 of none.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
