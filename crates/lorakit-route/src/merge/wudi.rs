//! WUDI (Cheng et al. 2025, <https://arxiv.org/abs/2503.08099>): the merged delta that interferes least with
//! each expert's delta on inputs like its training inputs, for which the rows of the delta itself stand in.
//!
//! With `D_i = w_i s_i B_i A_i` and `c_i = |D_i|_F^2` it minimizes `sum_i |(W - D_i) D_i'|_F^2 / c_i`. The authors take
//! 300 steps of Adam; the minimum of least norm has a closed form, with `G_i = D_i' D_i`:
//! `W = (sum_i D_i G_i / c_i) (sum_i G_i / c_i)^+`. All rows lie in the span of the stacked A's, so that in its
//! orthonormal basis Q the matrices are only as large as the sum of ranks, which also bounds the rank of the result.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::low_rank_product::{LowRankProduct, widened_a, widened_b};
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::Merged;
use crate::merge::module::{Footprint, MergedModule, Module, each_module};
use crate::merge::rank::Rank;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use faer::{Mat, Side};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `wudi`.
pub static WUDI: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "wudi",
    aliases: &[],
    summary: "the delta that interferes least with each expert's, in closed form",
    link: Some("https://arxiv.org/abs/2503.08099"),
    defaults: defaults::<Wudi>,
    parse: |name, typed| Ok(Arc::new(read::<Wudi>(name, typed)?)),
    version: 1,
};

/// The merge `wudi`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wudi {
    /// The rank of the result.
    pub rank: Rank,
    /// Input directions whose singular value in the stacked, normalized deltas is below this share of the largest are
    /// left out: they are rounding noise, which the inverse would amplify.
    pub tolerance: f64,
}

impl Default for Wudi {
    fn default() -> Self {
        Self { rank: Rank::Full, tolerance: 1e-6 }
    }
}

impl Settings for Wudi {
    fn validate(&self) -> Result<(), String> {
        if (0.0..1.0).contains(&self.tolerance) {
            return Ok(());
        }
        Err(format!("tolerance={} must lie from 0 to below 1", self.tolerance))
    }
}

impl fmt::Display for Wudi {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, WUDI.name, self)
    }
}

impl MergeMethod for Wudi {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &WUDI
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        each_module(experts, coefficients, Footprint::LowRank, |module| self.merge_module(module))
    }

    fn averages(&self) -> bool {
        true
    }
}

impl Wudi {
    fn merge_module(&self, module: &Module) -> Result<MergedModule> {
        let stacked = LowRankProduct::sum(module, 1.0);
        if stacked.a.nrows() == 0 {
            return stacked.truncated(module, self.rank);
        }
        let basis = stacked.a.transpose().qr().compute_thin_Q();
        let mut gram = Mat::<f64>::zeros(basis.ncols(), basis.ncols());
        let mut a = Mat::<f64>::zeros(stacked.a.nrows(), basis.ncols());
        let mut at = 0;
        for part in module.summands() {
            let rank = part.update.rank();
            let b = widened_b(part.update, part.weight * part.update.scale());
            let inner = widened_a(part.update) * &basis;
            let own = inner.transpose() * (b.transpose() * &b) * &inner;
            // The trace of the Gram matrix is the squared norm; a zero delta contributes nothing.
            let squared_norm: f64 = (0..own.nrows()).map(|at| own[(at, at)]).sum();
            if squared_norm > 0.0 {
                let own = own * faer::Scale(1.0 / squared_norm);
                a.subrows_mut(at, rank).copy_from(&inner * &own);
                gram += own;
            }
            at += rank;
        }
        let a = a * self.pseudo_inverse(module, &gram)? * basis.transpose();
        LowRankProduct { b: stacked.b, a }.truncated(module, self.rank)
    }

    fn pseudo_inverse(&self, module: &Module, gram: &Mat<f64>) -> Result<Mat<f64>> {
        let eigen = gram
            .self_adjoint_eigen(Side::Lower)
            .map_err(|_| module.arithmetic("the eigenvalues of the Gram matrix did not converge"))?;
        let values: Vec<f64> = eigen.S().column_vector().iter().copied().collect();
        let largest = values.iter().fold(0f64, |largest, value| largest.max(*value));
        // Eigenvalues are squared singular values.
        let least = largest * (self.tolerance * self.tolerance).max(f64::EPSILON * gram.nrows() as f64);
        let inverses = values.iter().map(|value| if *value > least { 1.0 / value } else { 0.0 });
        let inverses: Vec<f64> = inverses.collect();
        let u = eigen.U();
        Ok(Mat::from_fn(u.nrows(), u.ncols(), |row, column| u[(row, column)] * inverses[column]) * u.transpose())
    }
}
