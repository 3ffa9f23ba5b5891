//! LoRA-LEGO (Zhao et al. 2024, <https://arxiv.org/abs/2409.16167>): the rank-one terms of all experts are clustered, and
//! each cluster becomes one term of the result.
//!
//! Unit j of expert i is the row j of A_i with the column j of `w_i s_i B_i`. The units of all experts are divided into r
//! clusters by k-means. A cluster's unit is its mean, rescaled to the mean of its members' largest magnitudes, and B is
//! multiplied by `sqrt(units / r)`, with r the clusters found: equal units need fewer. With as many clusters as units the
//! result is the weighted sum. Refactoring an adapter as `(B R^-1, R A)` changes its units. The authors' code is not public;
//! this follows the published formulas and CtM's code (<https://arxiv.org/abs/2606.03723>).

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::low_rank_product::{LowRankProduct, update};
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::{Merged, Retained};
use crate::merge::module::{Footprint, MergedModule, Module, each_module};
use crate::merge::rank::Rank;
use crate::merge::unit_clusters::unit_clusters;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, defaults, read, write};
use faer::Mat;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `lego`.
pub static LEGO: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "lego",
    aliases: &[],
    summary: "LoRA-LEGO: cluster the rank-one terms of all experts, one term per cluster",
    link: Some("https://arxiv.org/abs/2409.16167"),
    defaults: defaults::<Lego>,
    parse: |name, typed| Ok(Arc::new(read::<Lego>(name, typed)?)),
    version: 1,
};

/// The merge `lego`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lego {
    /// The maximum number of clusters: that of the ranks of the result.
    pub rank: Rank,
    /// The seed of the restarts of k-means.
    pub seed: u64,
}

impl Default for Lego {
    fn default() -> Self {
        Self { rank: Rank::Largest, seed: 0 }
    }
}

impl Settings for Lego {}

impl fmt::Display for Lego {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, LEGO.name, self)
    }
}

impl MergeMethod for Lego {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &LEGO
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        each_module(experts, coefficients, Footprint::LowRank, |module| self.merge_module(module))
    }

    fn averages(&self) -> bool {
        true
    }
}

impl Lego {
    fn merge_module(&self, module: &Module) -> Result<MergedModule> {
        // Its rows of A and columns of B are the units.
        let LowRankProduct { b, a } = LowRankProduct::sum(module, 1.0);
        let units = a.nrows();
        let rank = self.rank.at(module, units);
        if rank == units {
            return LowRankProduct { b, a }.exact(module);
        }
        let inner_products = &a * a.transpose() + b.transpose() * &b;
        let labels = unit_clusters(&inner_products, rank, self.seed);
        let count = labels.iter().max().map_or(0, |label| label + 1);
        let grow = (units as f64 / count as f64).sqrt();
        let (mut merged_b, mut merged_a) = (Mat::zeros(module.output, count), Mat::zeros(count, module.input));
        for cluster in 0..count {
            let members: Vec<usize> = (0..units).filter(|unit| labels[*unit] == cluster).collect();
            let share = 1.0 / members.len() as f64;
            let mean_a: Vec<f64> = (0..module.input).map(|at| mean_of(&members, share, |unit| a[(unit, at)])).collect();
            let mean_b: Vec<f64> =
                (0..module.output).map(|at| mean_of(&members, share, |unit| b[(at, unit)])).collect();
            let magnitude = |unit: usize| {
                let a = (0..module.input).map(|at| a[(unit, at)]);
                largest(a.chain((0..module.output).map(|at| b[(at, unit)])))
            };
            let own = largest(mean_a.iter().chain(&mean_b).copied());
            // Members that cancel leave nothing to rescale.
            let factor = if own > 0.0 { mean_of(&members, share, magnitude) / own } else { 0.0 };
            (0..module.input).for_each(|at| merged_a[(cluster, at)] = factor * mean_a[at]);
            (0..module.output).for_each(|at| merged_b[(at, cluster)] = grow * factor * mean_b[at]);
        }
        let update = update(module, merged_b.as_ref(), merged_a.as_ref())?;
        Ok(MergedModule { update, retained: Retained::ALL })
    }
}

fn mean_of(members: &[usize], share: f64, value: impl Fn(usize) -> f64) -> f64 {
    share * members.iter().map(|unit| value(*unit)).sum::<f64>()
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |largest, value| largest.max(value.abs()))
}
