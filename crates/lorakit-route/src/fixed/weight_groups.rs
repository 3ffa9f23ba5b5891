//! Which of a library's modules share the weights of a mixture.

use crate::error::{Result, RouteError};
use crate::library_stack::LibraryStack;
use lorakit_adapter::Matrix;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The unit that has a weight of its own for each expert.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// The whole model: one weight per expert.
    Expert,
    /// A layer: the paper's formula.
    #[default]
    Layer,
    /// A site.
    Site,
    /// A module: the authors' code.
    Module,
}

/// Which weights serve which projection of which site.
pub(crate) struct WeightGroups {
    /// The first group of each site, by its index.
    first: BTreeMap<usize, usize>,
    granularity: Granularity,
    /// The names of the groups, in their order, as `layer 3` or `3.qkv`.
    pub(crate) names: Vec<String>,
}

impl WeightGroups {
    pub(crate) fn of(granularity: Granularity, experts: &LibraryStack) -> Self {
        let (mut first, mut names) = (BTreeMap::new(), Vec::new());
        for (index, site, _) in experts.stacks() {
            let own: Vec<String> = match granularity {
                Granularity::Expert => vec!["all layers".to_owned()],
                Granularity::Layer => vec![site.layer.map_or_else(|| site.key(), |layer| format!("layer {layer}"))],
                Granularity::Site => vec![site.key()],
                Granularity::Module => site.projections.iter().map(|projection| projection.module.clone()).collect(),
            };
            let known = names.iter().position(|name| *name == own[0]);
            first.insert(index, known.unwrap_or(names.len()));
            if known.is_none() {
                names.extend(own);
            }
        }
        Self { first, granularity, names }
    }

    /// The group of a projection of a site.
    pub(crate) fn group(&self, site: usize, projection: usize) -> usize {
        let first = self.first.get(&site).copied().unwrap_or(0);
        first + if self.granularity == Granularity::Module { projection } else { 0 }
    }

    /// The values of fitted weights, `[groups, experts]`.
    ///
    /// # Errors
    /// If their shape is that of another library.
    pub(crate) fn values(&self, experts: &LibraryStack, weights: &Matrix) -> Result<Vec<f32>> {
        let (found, expected) = ((weights.rows(), weights.cols()), (self.names.len(), experts.len()));
        if found != expected {
            return Err(RouteError::StateMismatch { name: "weights".to_owned(), expected, found: Some(found) });
        }
        Ok(weights.values().into_owned())
    }

    /// For each group, the experts that have any module there.
    pub(crate) fn present(&self, experts: &LibraryStack) -> Vec<BTreeSet<usize>> {
        let mut present = vec![BTreeSet::new(); self.names.len()];
        for (index, _, stack) in experts.stacks() {
            for (projection, own) in stack.present().enumerate() {
                present[self.group(index, projection)].extend(own);
            }
        }
        present
    }
}
