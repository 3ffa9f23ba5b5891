//! RobustMerge (Zeng et al. 2025, <https://arxiv.org/abs/2502.17159>): A and B are trimmed to their largest values and
//! summed, each direction rescaled by what trimming took from it.
//!
//! From each A_i and B_i all but the largest values are dropped. Direction j of expert i is scaled by
//! `g_ij = |A_ij|_1 / |trimmed A_ij|_1`, and small scales are raised to the one at the share `1 - clamp` of its expert's in
//! increasing order. Then, of the trimmed matrices, `A = factor sum_i A_i` and
//! `B_j = factor sum_i w_i s_i g_ij B_ij / sum_i g_ij`. As the sums of A and B are taken separately, the result contains terms of one expert's B with another's A, depends on how an adapter is
//! factored, and needs equal ranks. Experts of weight zero are left out. The authors' code ignores scales and keeps the
//! first expert's; this is the same where scales are equal.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::{Merged, Retained};
use crate::merge::module::{Footprint, MergedModule, Module, each_module};
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, above_zero, defaults, read, write};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The merge `robust`.
pub static ROBUST: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "robust",
    aliases: &[],
    summary: "RobustMerge: keep the largest values, rescale directions, sum: A and B separately",
    link: Some("https://arxiv.org/abs/2502.17159"),
    defaults: defaults::<RobustMerge>,
    parse: |name, typed| Ok(Arc::new(read::<RobustMerge>(name, typed)?)),
    version: 1,
};

/// The merge `robust`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RobustMerge {
    /// The share of values that each A and each B keeps, in (0, 1].
    pub density: f64,
    /// The share of an expert's directions, the most rescaled ones, up to whose scale the others are raised, in (0, 1].
    pub clamp: f64,
    /// What A and B are multiplied by, each.
    pub factor: f64,
}

impl Default for RobustMerge {
    fn default() -> Self {
        Self { density: 0.2, clamp: 0.2, factor: 2.0 }
    }
}

impl Settings for RobustMerge {
    fn validate(&self) -> Result<(), String> {
        for (key, value) in [("density", self.density), ("clamp", self.clamp)] {
            if !(value > 0.0 && value <= 1.0) {
                return Err(format!("{key}={value} must lie above 0 and up to 1"));
            }
        }
        above_zero("factor", self.factor)
    }
}

impl fmt::Display for RobustMerge {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write(f, ROBUST.name, self)
    }
}

impl MergeMethod for RobustMerge {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &ROBUST
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        each_module(experts, coefficients, Footprint::LowRank, |module| self.merge_module(module))
    }

    fn changed_factor(&self) -> Option<(&'static str, f64)> {
        (self.factor != Self::default().factor).then_some(("factor", self.factor))
    }

    fn mixes_separately(&self) -> bool {
        true
    }

    fn averages(&self) -> bool {
        true
    }
}

impl RobustMerge {
    fn merge_module(&self, module: &Module) -> Result<MergedModule> {
        // An expert of weight zero would add its A.
        let module = &module.of_summands();
        if module.parts.is_empty() {
            return Ok(MergedModule { update: module.zero()?, retained: Retained::ALL });
        }
        let rank = module.equal_rank(ROBUST.name, "tsv")?;
        let (mut a, mut b) = (vec![0f64; rank * module.input], vec![0f64; module.output * rank]);
        let mut total = vec![0f64; rank];
        for part in &module.parts {
            let values = part.update.a().values();
            let kept = self.trimmed(&values);
            let scales = self.scales(&values, &kept, module.input);
            a.iter_mut().zip(&kept).for_each(|(sum, value)| *sum += self.factor * f64::from(*value));
            total.iter_mut().zip(&scales).for_each(|(total, scale)| *total += scale);
            let weight = self.factor * part.weight * part.update.scale();
            let kept = self.trimmed(&part.update.b().values());
            for (sums, row) in b.chunks_exact_mut(rank).zip(kept.chunks_exact(rank)) {
                for ((sum, value), scale) in sums.iter_mut().zip(row).zip(&scales) {
                    *sum += weight * scale * f64::from(*value);
                }
            }
        }
        for row in b.chunks_exact_mut(rank) {
            for (value, total) in row.iter_mut().zip(&total).filter(|(_, total)| **total > 0.0) {
                *value /= total;
            }
        }
        let single = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        Ok(MergedModule { update: module.update(rank, single(a), single(b))?, retained: Retained::ALL })
    }

    /// The values from the `int((1 - density) n)`-th smallest magnitude up, as torch's `kthvalue` counts; the others are 0.
    fn trimmed(&self, values: &[f32]) -> Vec<f32> {
        let dropped = ((1.0 - self.density) * values.len() as f64) as usize;
        let Some(at) = dropped.checked_sub(1) else { return values.to_vec() };
        let mut magnitudes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
        let (_, least, _) = magnitudes.select_nth_unstable_by(at, f32::total_cmp);
        let least = *least;
        values.iter().map(|value| if value.abs() >= least { *value } else { 0.0 }).collect()
    }

    /// How much each row of A lost, raised to the least that is allowed. A row that lost everything has that least scale.
    fn scales(&self, values: &[f32], kept: &[f32], columns: usize) -> Vec<f64> {
        let sum = |row: &[f32]| row.iter().map(|value| f64::from(value.abs())).sum::<f64>();
        let rows = values.chunks_exact(columns).zip(kept.chunks_exact(columns));
        let ratio = |(all, left): (&[f32], &[f32])| if sum(left) > 0.0 { sum(all) / sum(left) } else { 0.0 };
        let scales: Vec<f64> = rows.map(ratio).collect();
        let mut sorted = scales.clone();
        sorted.sort_by(f64::total_cmp);
        let at = ((1.0 - self.clamp) * scales.len() as f64) as usize;
        let least = sorted[at.min(scales.len() - 1)];
        scales.into_iter().map(|scale| scale.max(least)).collect()
    }
}
