//! The weights of experts in a merge.

use crate::error::{Result, RouteError};
use crate::library_stack::Expert;
use std::collections::BTreeMap;

/// A weight per expert, in the experts' order, optionally with separate weights for some modules.
///
/// Weights may be negative and need not sum to one. CAT (<https://arxiv.org/abs/2410.13025>) learns one per adapter
/// and layer, which needs weights per module.
#[derive(Clone, Debug, PartialEq)]
pub struct Coefficients {
    weights: Vec<f64>,
    modules: BTreeMap<String, Vec<f64>>,
}

impl Coefficients {
    /// The same weights in every module.
    pub fn new(weights: Vec<f64>) -> Self {
        Self { weights, modules: BTreeMap::new() }
    }

    /// `1/n` for each of `experts`: the mean.
    pub fn uniform(experts: usize) -> Self {
        Self::new(vec![1.0 / experts.max(1) as f64; experts])
    }

    /// Weight 1 for each of `experts`.
    pub fn ones(experts: usize) -> Self {
        Self::new(vec![1.0; experts])
    }

    /// Sets separate weights for the module at a path.
    pub fn with_module(mut self, module: impl Into<String>, weights: Vec<f64>) -> Self {
        self.modules.insert(module.into(), weights);
        self
    }

    /// The weights in modules without separate ones, in the experts' order.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The weights in a module, in the experts' order.
    pub fn at(&self, module: &str) -> &[f64] {
        self.modules.get(module).unwrap_or(&self.weights)
    }

    /// The modules with separate weights, and those weights.
    pub fn modules(&self) -> &BTreeMap<String, Vec<f64>> {
        &self.modules
    }

    /// Checks that there is one finite weight per expert, and that every module with separate weights is changed by
    /// some expert.
    pub(super) fn check(&self, experts: &[Expert]) -> Result<()> {
        check_one("", &self.weights, experts)?;
        for (module, weights) in &self.modules {
            if !experts.iter().any(|expert| expert.adapter.modules().contains_key(module)) {
                return Err(RouteError::WeightOfNoModule(module.clone()));
            }
            check_one(&format!(" for `{module}`"), weights, experts)?;
        }
        Ok(())
    }
}

fn check_one(scope: &str, weights: &[f64], experts: &[Expert]) -> Result<()> {
    if weights.len() != experts.len() {
        let scope = scope.to_owned();
        return Err(RouteError::WeightCount { weights: weights.len(), experts: experts.len(), scope });
    }
    match weights.iter().zip(experts).find(|(weight, _)| !weight.is_finite()) {
        Some((weight, expert)) => Err(RouteError::Weight { expert: expert.name.clone(), weight: *weight }),
        None => Ok(()),
    }
}
