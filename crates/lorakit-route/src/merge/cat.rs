//! The exact weighted sum of deltas, which is what most want by "merge".
//!
//! With `A = [w1 s1 A1; w2 s2 A2; ...]` (rows under rows) and `B = [B1, B2, ...]` (columns beside columns),
//! `B A = sum_i w_i s_i B_i A_i`, nothing lost and no cross terms, at the price of a rank that is the sum of ranks.
//! PEFT calls it `cat`; LoRA Soups, which learns the weights, CAT (<https://arxiv.org/abs/2410.13025>, equation 3).
//! Systematic comparisons find little that is reliably better than this sum (<https://arxiv.org/abs/2511.21437>).

use super::error::Result;
use super::merged::Kept;
use super::module::{Made, Module};

/// The module's exact sum. Weights and scales are folded into A, so that any loader of PEFT's folders reads the same.
pub(super) fn merge(module: &Module) -> Result<Made> {
    let rank = module.rank_sum();
    let mut a = Vec::with_capacity(rank * module.input);
    let mut b = vec![0f32; module.output * rank];
    let mut column = 0;
    for part in &module.parts {
        let (update, weight) = (part.update, part.weight * part.update.scale());
        a.extend(update.a().values().iter().map(|value| (weight * f64::from(*value)) as f32));
        for (to, from) in b.chunks_exact_mut(rank).zip(update.b().values().chunks_exact(update.rank())) {
            to[column..column + from.len()].copy_from_slice(from);
        }
        column += update.rank();
    }
    Ok(Made { update: module.update(rank, a, b)?, kept: Kept::ALL })
}
