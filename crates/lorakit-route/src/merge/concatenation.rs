//! The exact weighted sum of deltas, by concatenating factors.
//!
//! With `A = [w1 s1 A1; w2 s2 A2; ...]` (stacked rows) and `B = [B1, B2, ...]` (stacked columns),
//! `B A = sum_i w_i s_i B_i A_i` exactly, without cross terms, at the sum of ranks. PEFT calls it `cat`; LoRA
//! Soups, which learns the weights, CAT (<https://arxiv.org/abs/2410.13025>, equation 3). Systematic comparisons find
//! hardly any merge that is reliably better (<https://arxiv.org/abs/2511.21437>).

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::merge_method::MergeMethod;
use crate::merge::merge_report::{Merged, Retained};
use crate::merge::module::{Footprint, MergedModule, Module, each_module};
use crate::method_info::{MethodInfo, no_settings};
use crate::method_settings::read_none;
use std::fmt;
use std::sync::Arc;

/// The merge `cat`.
pub static CAT: MethodInfo<dyn MergeMethod> = MethodInfo {
    name: "cat",
    aliases: &[],
    summary: "the exact weighted sum of deltas, at the sum of ranks",
    link: Some("https://arxiv.org/abs/2410.13025"),
    defaults: no_settings,
    parse: |name, typed| read_none(name, typed).map(|()| Arc::new(Concatenation) as Arc<dyn MergeMethod>),
    version: 1,
};

/// The merge `cat`: the exact weighted sum, at the sum of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Concatenation;

impl fmt::Display for Concatenation {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(CAT.name)
    }
}

impl MergeMethod for Concatenation {
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod> {
        &CAT
    }

    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged> {
        each_module(experts, coefficients, Footprint::LowRank, concatenated)
    }
}

/// The module's exact sum. Weights and scales are folded into A, so that every PEFT loader computes the same. Experts of
/// weight zero add nothing, and so no ranks.
fn concatenated(module: &Module) -> Result<MergedModule> {
    let summands = module.summands();
    if summands.is_empty() {
        return Ok(MergedModule { update: module.zero()?, retained: Retained::ALL });
    }
    let rank = summands.iter().map(|part| part.update.rank()).sum();
    let mut a = Vec::with_capacity(rank * module.input);
    let mut b = vec![0f32; module.output * rank];
    let mut column = 0;
    for part in summands {
        let (update, weight) = (part.update, part.weight * part.update.scale());
        a.extend(update.a().values().iter().map(|value| (weight * f64::from(*value)) as f32));
        for (to, from) in b.chunks_exact_mut(rank).zip(update.b().values().chunks_exact(update.rank())) {
            to[column..column + from.len()].copy_from_slice(from);
        }
        column += update.rank();
    }
    Ok(MergedModule { update: module.update(rank, a, b)?, retained: Retained::ALL })
}
