//! Which experts were chosen, where, and at what weight: for explanations and reports.

use lorakit_lora::SequenceBatch;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// One routing decision over a batch.
#[derive(Debug)]
pub struct RoutingDecision<'a> {
    /// Index of the site.
    pub site: usize,
    /// The projections of the site that the decision holds for.
    pub projections: Range<usize>,
    /// Whose tokens they are.
    pub rows: &'a SequenceBatch,
    /// How many experts each token has.
    pub per_token: usize,
    /// Indices of the chosen experts, `[tokens, per_token]`; of fewer than all, the highest score comes first.
    pub experts: &'a [u32],
    /// Their weights, of the same shape. Each token's sum to one, or to less if part of it is left to the base or to a
    /// fallback.
    pub weights: &'a [f32],
}

/// Receives every decision as it is made. A router without one spends nothing on it.
pub trait Observer: Send + Sync {
    /// Receives one decision.
    fn observe(&self, routing: &RoutingDecision);
}

/// How much of the traffic of one projection an expert had.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct ExpertShare {
    /// Tokens for which it was among the chosen.
    pub tokens: u64,
    /// Sum of its weights over them.
    pub weight: f64,
}

/// Adds up, for each site, first projection of a decision and expert, how much traffic it had. The order in which threads
/// add to the sums does not matter.
#[derive(Debug, Default)]
pub struct RoutingStats(Mutex<BTreeMap<(usize, usize, usize), Traffic>>);

/// The same as [`ExpertShare`], but the sum is of integers, which is the same in every order.
#[derive(Debug, Default)]
struct Traffic {
    tokens: u64,
    /// In units of [`WEIGHT_UNIT`].
    weight: i128,
}

/// A weight of which every weight down to 2^-40 is a whole multiple: f32 has 24 bits.
const WEIGHT_UNIT: f64 = 1.0 / (1u128 << 64) as f64;

impl Traffic {
    fn share(&self) -> ExpertShare {
        ExpertShare { tokens: self.tokens, weight: self.weight as f64 * WEIGHT_UNIT }
    }
}

impl RoutingStats {
    /// The shares so far, by (site, first projection that the decision holds for, expert).
    pub fn shares(&self) -> BTreeMap<(usize, usize, usize), ExpertShare> {
        let traffic = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.iter().map(|(place, traffic)| (*place, traffic.share())).collect()
    }

    /// The shares since the last call, as [`RoutingStats::shares`].
    pub fn take(&self) -> BTreeMap<(usize, usize, usize), ExpertShare> {
        let traffic = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        traffic.into_iter().map(|(place, traffic)| (place, traffic.share())).collect()
    }
}

impl Observer for RoutingStats {
    fn observe(&self, routing: &RoutingDecision) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (expert, weight) in routing.experts.iter().zip(routing.weights) {
            let traffic = all.entry((routing.site, routing.projections.start, *expert as usize)).or_default();
            traffic.tokens += 1;
            traffic.weight = traffic.weight.saturating_add((f64::from(*weight) / WEIGHT_UNIT) as i128);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_do_not_depend_on_the_order_of_threads() {
        let weights: Vec<f32> = (1..200u8).map(|i| f32::from(i).powi(-5)).collect();
        let of = |weights: &mut dyn Iterator<Item = f32>| {
            let stats = RoutingStats::default();
            for weight in weights {
                let rows = SequenceBatch::packed([1]);
                let (experts, weights) = (&[3], &[weight]);
                stats.observe(&RoutingDecision {
                    site: 0,
                    projections: 0..1,
                    rows: &rows,
                    per_token: 1,
                    experts,
                    weights,
                });
            }
            stats.take()[&(0, 0, 3)]
        };
        let forward = of(&mut weights.iter().copied());
        assert_eq!(forward, of(&mut weights.iter().rev().copied()));
        let sum: f64 = weights.iter().copied().map(f64::from).sum();
        assert!(forward.tokens == 199 && (forward.weight - sum).abs() < 1e-13);
        assert_ne!(sum, weights.iter().rev().copied().map(f64::from).sum::<f64>(), "floats depend on it");
    }
}
