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

/// Adds up, for each site, first projection of a decision and expert, how much traffic it had.
#[derive(Debug, Default)]
pub struct RoutingStats(Mutex<BTreeMap<(usize, usize, usize), ExpertShare>>);

impl RoutingStats {
    /// The shares so far, by (site, first projection that the decision holds for, expert).
    pub fn shares(&self) -> BTreeMap<(usize, usize, usize), ExpertShare> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The shares since the last call, as [`RoutingStats::shares`].
    pub fn take(&self) -> BTreeMap<(usize, usize, usize), ExpertShare> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Observer for RoutingStats {
    fn observe(&self, routing: &RoutingDecision) {
        let mut shares = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (expert, weight) in routing.experts.iter().zip(routing.weights) {
            let share = shares.entry((routing.site, routing.projections.start, *expert as usize)).or_default();
            share.tokens += 1;
            share.weight += f64::from(*weight);
        }
    }
}
