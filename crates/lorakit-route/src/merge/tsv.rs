//! TSV-M (Gargiulo et al. 2025, <https://arxiv.org/abs/2412.00081>): the sum of deltas, after the experts' singular
//! directions have been made orthogonal to each other.
//!
//! With `w_i D_i = U_i S_i V_i'` and the first k triples of each, `U = [U_1 | ... | U_n]` and `V = [V_1 | ... | V_n]` are
//! replaced by their polar factors, the nearest matrices with orthonormal columns, and `W = U diag(S_1, ..., S_n) V'`. As
//! published, `k = int(min(out, in) / n)`; where that exceeds an expert's rank, the result depends on null vectors that the
//! decomposition routine picks. Here it is `k = int(min(out, in, R) / n)` with the sum of ranks R, as in Core Space
//! (<https://arxiv.org/abs/2509.17786>), no expert has more directions than its rank, and null directions of U and V, as of
//! experts that share their A, are left out.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::low_rank_product::{LowRankProduct, scaled_columns, squares};
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::{Merged, Retained};
use crate::merge::module::{Footprint, MergedModule, Module, each_module};
use crate::merge::rank::Rank;
use crate::merge::singular_triples::{SingularTriples, polar_factor, side_by_side};
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `tsv`.
pub static TSV: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "tsv",
    aliases: &[],
    summary: "the sum of deltas whose singular directions are made orthogonal first",
    link: Some("https://arxiv.org/abs/2412.00081"),
    defaults: defaults::<Tsv>,
    parse: |name, typed| Ok(Arc::new(read::<Tsv>(name, typed)?)),
    version: 1,
};

/// The merge `tsv`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tsv {
    /// How many directions of each expert are used.
    pub keep: KeptDirections,
    /// The rank of the result.
    pub rank: Rank,
}

impl Default for Tsv {
    fn default() -> Self {
        Self { keep: KeptDirections::Equal, rank: Rank::Full }
    }
}

/// How many singular directions of each expert are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeptDirections {
    /// The same number of each, at least one: their mean rank or what fits the space, and no more than its rank.
    Equal,
    /// Every one.
    All,
}

impl Settings for Tsv {}

impl fmt::Display for Tsv {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, TSV.name, self)
    }
}

impl MergeMethod for Tsv {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &TSV
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        each_module(experts, coefficients, Footprint::LowRank, |module| self.merge_module(module))
    }

    fn averages(&self) -> bool {
        true
    }
}

impl Tsv {
    fn merge_module(&self, module: &Module) -> Result<MergedModule> {
        let experts = SingularTriples::of_experts(module)?;
        let experts = experts.iter().map(|(_, triples)| triples);
        let kept = match self.keep {
            KeptDirections::All => usize::MAX,
            KeptDirections::Equal => {
                let all: usize = experts.clone().map(|of| of.values.len()).sum();
                (all.min(module.output).min(module.input) / experts.len().max(1)).max(1)
            }
        };
        let left = side_by_side(module.output, experts.clone().map(|of| (of.left.as_ref(), kept)));
        let right = side_by_side(module.input, experts.clone().map(|of| (of.right.as_ref(), kept)));
        let dropped: f64 = experts.clone().map(|of| squares(of.values.get(kept..).unwrap_or_default())).sum();
        let values: Vec<f64> = experts.flat_map(|of| of.values.iter().take(kept).copied()).collect();
        let b = scaled_columns(polar_factor(module, &left)?.0.as_ref(), &values);
        let a = polar_factor(module, &right)?.0.transpose().to_owned();
        let merged = LowRankProduct { b, a }.truncated(module, self.rank)?;
        Ok(MergedModule { retained: merged.retained.after(Retained::of(squares(&values), dropped)), ..merged })
    }
}
