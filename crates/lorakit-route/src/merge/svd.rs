//! The weighted sum of deltas, truncated to a rank by its singular value decomposition: PEFT's `svd`, without dense
//! matrices. With `W = sum_i w_i s_i B_i A_i = U S V'`, the result has `B = U_r S_r` and `A = V_r'`.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::low_rank_product::LowRankProduct;
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::Merged;
use crate::merge::module::{Footprint, each_module};
use crate::merge::rank::Rank;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `svd`.
pub static SVD: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "svd",
    aliases: &[],
    summary: "the weighted sum of deltas, truncated to a rank by SVD",
    link: None,
    defaults: defaults::<Svd>,
    parse: |name, typed| Ok(Arc::new(read::<Svd>(name, typed)?)),
    version: 1,
};

/// The merge `svd`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Svd {
    /// The rank of the result.
    pub rank: Rank,
}

impl Default for Svd {
    fn default() -> Self {
        Self { rank: Rank::Largest }
    }
}

impl Settings for Svd {}

impl fmt::Display for Svd {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, SVD.name, self)
    }
}

impl MergeMethod for Svd {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &SVD
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        each_module(experts, coefficients, Footprint::LowRank, |module| {
            LowRankProduct::sum(module, 1.0).truncated(module, self.rank)
        })
    }
}
