//! Which experts the rows of each task went to, observed while they were evaluated.

use lorakit_route::{Observer, RoutingStats};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Observes routers, and keeps what each expert got of each task.
pub struct RoutingShares {
    /// By router; none if nobody asks.
    observers: Option<Vec<Arc<RoutingStats>>>,
    /// The weight of each expert, by router and task.
    weights: BTreeMap<(usize, usize), BTreeMap<usize, f64>>,
}

impl RoutingShares {
    /// For this number of routers; without `observed`, nothing is observed.
    pub fn new(routers: usize, observed: bool) -> Self {
        let observers = || (0..routers).map(|_| Arc::default()).collect();
        Self { observers: observed.then(observers), weights: BTreeMap::new() }
    }

    /// What observes a router, by its number.
    pub fn observer(&self, router: usize) -> Option<Arc<dyn Observer>> {
        let stats: Arc<dyn Observer> = self.observers.as_ref()?[router].clone();
        Some(stats)
    }

    /// Counts what a router did since the last call as done on a task.
    pub fn count(&mut self, router: usize, task: usize) {
        let Some(observers) = &self.observers else { return };
        let weights = self.weights.entry((router, task)).or_default();
        for ((_, _, expert), share) in observers[router].take() {
            *weights.entry(expert).or_default() += share.weight;
        }
    }

    /// The share of each of `experts` in the weight that all had of a router on a task; none where no expert had any.
    pub fn of(&self, router: usize, task: usize, experts: usize) -> Option<Vec<f64>> {
        let weights = self.weights.get(&(router, task))?;
        let total: f64 = weights.values().sum();
        let share = |expert: usize| weights.get(&expert).map_or(0.0, |weight| weight / total);
        (total > 0.0).then(|| (0..experts).map(share).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_lora::SequenceBatch;
    use lorakit_route::RoutingDecision;

    #[test]
    fn a_task_s_shares_are_those_since_the_task_before() {
        let mut shares = RoutingShares::new(1, true);
        let observe = |shares: &RoutingShares, weights: &[f32]| {
            let rows = SequenceBatch::packed([2]);
            let (projections, experts) = (0..1, [0, 2, 0, 2]);
            let decision =
                RoutingDecision { site: 0, projections, rows: &rows, per_token: 2, experts: &experts, weights };
            shares.observer(0).unwrap().observe(&decision);
        };
        observe(&shares, &[0.75, 0.25, 0.25, 0.75]);
        shares.count(0, 0);
        observe(&shares, &[1.0, 0.0, 0.5, 0.5]);
        shares.count(0, 1);
        assert_eq!(shares.of(0, 0, 3), Some(vec![0.5, 0.0, 0.5]));
        assert_eq!(shares.of(0, 1, 3), Some(vec![0.75, 0.0, 0.25]));
        shares.count(0, 2);
        assert_eq!((shares.of(0, 2, 3), shares.of(1, 0, 3)), (None, None), "nothing was routed");
        assert!(RoutingShares::new(1, false).observer(0).is_none());
    }
}
