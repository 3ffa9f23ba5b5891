//! Iso-CTS (Marczak et al. 2025, <https://arxiv.org/abs/2502.04959>): Iso-C over the largest directions of the sum and a few
//! directions of each expert that those lack.
//!
//! Of m directions, the first c of the sum `sum_i w_i D_i` are common: `U_c`, `V_c`. Each of the n experts adds the first t
//! of `(I - U_c U_c') w_i D_i`. The columns side by side are made orthogonal as in TSV-M, and all singular values are set to
//! their mean. As published m is `min(out, in)`, where null directions are arbitrary; here it is the number of dimensions
//! that the experts span, as in Core Space (<https://arxiv.org/abs/2509.17786>), `t = round((m - int(fraction m)) / n)` and
//! `c = m - t n`. At a lower rank it is `t = 1` and `c = rank - n`, as in CtM's code
//! (<https://arxiv.org/abs/2606.03723>).

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::iso_c::mean;
use crate::merge::low_rank_product::LowRankProduct;
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::{Merged, Retained};
use crate::merge::module::{Footprint, MergedModule, Module, each_module};
use crate::merge::rank::Rank;
use crate::merge::singular_triples::{SingularTriples, polar_factor, side_by_side, spans};
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use faer::Scale;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::once;
use std::sync::Arc;

/// The merge `iso_cts`.
pub static ISO_CTS: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "iso_cts",
    aliases: &[],
    summary: "as iso_c, with directions of each expert beside those of the sum",
    link: Some("https://arxiv.org/abs/2502.04959"),
    defaults: defaults::<IsoCts>,
    parse: |name, typed| Ok(Arc::new(read::<IsoCts>(name, typed)?)),
    version: 1,
};

/// The merge `iso_cts`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IsoCts {
    /// The share of directions that are those of the sum, at full rank.
    pub fraction: f64,
    /// The rank of the result.
    pub rank: Rank,
}

impl Default for IsoCts {
    fn default() -> Self {
        Self { fraction: 0.8, rank: Rank::Full }
    }
}

impl Settings for IsoCts {
    fn validate(&self) -> Result<(), String> {
        if (0.0..=1.0).contains(&self.fraction) {
            return Ok(());
        }
        Err(format!("fraction={} must lie from 0 to 1", self.fraction))
    }
}

impl fmt::Display for IsoCts {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, ISO_CTS.name, self)
    }
}

impl MergeMethod for IsoCts {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &ISO_CTS
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        each_module(experts, coefficients, Footprint::LowRank, |module| self.merge_module(module))
    }

    fn averages(&self) -> bool {
        true
    }
}

impl IsoCts {
    fn merge_module(&self, module: &Module) -> Result<MergedModule> {
        let experts = SingularTriples::of_experts(module)?;
        let [outputs, inputs] = spans(module, experts.iter().map(|(_, triples)| triples))?;
        let most = outputs.min(inputs);
        let [common, own] = self.directions(module, experts.len(), most)?;
        let sum = LowRankProduct::sum(module, 1.0);
        let of_sum = SingularTriples::of(module, &sum, 0.0)?;
        let common = common.min(of_sum.values.len());
        let shared = of_sum.left.subcols(0, common);
        let rest = |(delta, triples): &(LowRankProduct, SingularTriples)| {
            let b = &delta.b - shared * (shared.transpose() * &delta.b);
            SingularTriples::of(module, &LowRankProduct { b, a: delta.a.clone() }, triples.values[0])
        };
        let rest = experts.iter().map(rest).collect::<Result<Vec<_>>>()?;
        let all = once((&of_sum, common)).chain(rest.iter().map(|of| (of, own)));
        let left = side_by_side(module.output, all.clone().map(|(of, kept)| (of.left.as_ref(), kept)));
        let right = side_by_side(module.input, all.clone().map(|(of, kept)| (of.right.as_ref(), kept)));
        let values: Vec<f64> = all.flat_map(|(of, kept)| of.values.iter().take(kept).copied()).collect();
        let (left, right) = (polar_factor(module, &left)?.0, polar_factor(module, &right)?.0);
        let retained = if values.len() < most {
            let inside = (left.transpose() * &sum.b) * (&sum.a * &right);
            let (inside, total) = (inside.squared_norm_l2(), of_sum.values.iter().map(|value| value * value).sum());
            Retained::of(inside.min(total), (total - inside).max(0.0))
        } else {
            Retained::ALL
        };
        let product = LowRankProduct { b: left * Scale(mean(&values)), a: right.transpose().to_owned() };
        Ok(MergedModule { retained, ..product.exact(module)? })
    }

    /// The number of common directions and that of each expert's own, of at most `most`.
    fn directions(&self, module: &Module, experts: usize, most: usize) -> Result<[usize; 2]> {
        let rank = self.rank.at(module, most);
        if experts == 0 {
            return Ok([0, 0]);
        }
        if rank < most {
            let common = rank.checked_sub(experts).filter(|common| *common > 0);
            let common = common.ok_or_else(|| {
                module.arithmetic("a direction of each expert and a common one need a rank above the number of experts")
            })?;
            return Ok([common, 1]);
        }
        let common = (self.fraction * most as f64) as usize;
        // Halves are rounded to even, as in Python.
        let own = ((most - common.min(most)) as f64 / experts as f64).round_ties_even() as usize;
        let own = own.min(most / experts);
        Ok([most - own * experts, own])
    }
}
