//! Patches that mix experts by weights that do not depend on the token: the same for all rows, or each row's own.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::mixing::{Mixing, Mixture};
use crate::observer::{Observer, RoutingDecision};
use crate::site_patches::site_patches;
use crate::stack::RoutingScope;
use candle_core::{Tensor, bail};
use lorakit_lora::{Addition, Outputs, Patch, Patches, SequenceBatch, TokenGroup, TokenSelection};
use std::sync::Arc;

/// Patches that give each row the experts at the weights of [`lorakit_lora::Sequence::weights`], one for each expert in
/// the order of names; a row without weights gets none. Rows of one batch may try many candidates.
///
/// # Errors
/// Under separate mixing, if ranks differ at a projection.
pub fn by_row_weights(experts: &LibraryStack, mixing: Mixing) -> Result<Patches> {
    weighted_patches(experts, mixing, None, None)
}

/// As [`by_row_weights`]; `observer`, if any, receives the weights of every token.
pub(crate) fn observed_row_weights(
    experts: &LibraryStack,
    mixing: Mixing,
    observer: Option<Arc<dyn Observer>>,
) -> Result<Patches> {
    weighted_patches(experts, mixing, None, observer)
}

/// Patches that give every row the same weights, one for each expert in the order of names.
///
/// # Errors
/// As [`by_row_weights`].
pub fn by_weights(experts: &LibraryStack, mixing: Mixing, weights: &[f32]) -> Result<Patches> {
    weighted_patches(experts, mixing, Some(weights.into()), None)
}

fn weighted_patches(
    experts: &LibraryStack,
    mixing: Mixing,
    fixed: Option<Arc<[f32]>>,
    observer: Option<Arc<dyn Observer>>,
) -> Result<Patches> {
    site_patches(experts, |index, site, stack| {
        let mixture = Mixture::new(mixing, RoutingScope::Projection, experts, site, stack)?;
        let (experts, projections) = (experts.len(), site.projections.len());
        Ok(Some(Arc::new(WeightedPatch {
            mixture,
            experts,
            projections,
            fixed: fixed.clone(),
            site: index,
            observer: observer.clone().filter(|_| site.layer.is_some()),
        }) as Arc<dyn Patch>))
    })
}

struct WeightedPatch {
    mixture: Mixture,
    experts: usize,
    projections: usize,
    /// The weights of all rows, unless they have their own.
    fixed: Option<Arc<[f32]>>,
    site: usize,
    observer: Option<Arc<dyn Observer>>,
}

impl WeightedPatch {
    /// Shows every token all experts at the weights of its row.
    fn show(&self, rows: &SequenceBatch, observer: &dyn Observer) {
        let (mut experts, mut weights) = (Vec::new(), Vec::new());
        for row in rows.iter() {
            let of_row = self.fixed.as_ref().or(row.weights.as_ref());
            for _ in 0..row.len {
                experts.extend(0..self.experts as u32);
                weights.extend((0..self.experts).map(|e| of_row.and_then(|w| w.get(e)).copied().unwrap_or(0.0)));
            }
        }
        let (site, per_token, projections) = (self.site, self.experts, 0..self.projections);
        observer.observe(&RoutingDecision { site, projections, rows, per_token, experts: &experts, weights: &weights });
    }
}

impl Patch for WeightedPatch {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        self.begin(x, rows)?(out)
    }

    fn begin<'a>(&'a self, x: &'a Tensor, rows: &'a SequenceBatch) -> candle_core::Result<Addition<'a>> {
        if let Some(observer) = &self.observer {
            self.show(rows, observer.as_ref());
        }
        let mut groups = Vec::new();
        for row in rows.iter() {
            let Some(weights) = self.fixed.as_ref().or(row.weights.as_ref()) else { continue };
            if weights.len() != self.experts {
                bail!("a row carries {} weights for {} experts", weights.len(), self.experts);
            }
            for (expert, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
                groups.extend((0..self.projections).map(|projection| TokenGroup {
                    expert: projection * self.experts + expert,
                    tokens: TokenSelection::Contiguous(row.tokens()),
                    weights: Some(vec![weight; row.len]),
                }));
            }
        }
        self.mixture.begin(x, groups.into())
    }
}
