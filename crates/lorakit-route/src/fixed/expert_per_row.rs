//! Each row under its own expert.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::mixing::{Mixing, Mixture};
use crate::site_patches::site_patches;
use crate::stack::RoutingScope;
use candle_core::{Tensor, bail};
use lorakit_lora::{Addition, Outputs, Patch, Patches, SequenceBatch, TokenGroup, TokenSelection};
use std::sync::Arc;

/// Patches that give each row the expert that [`lorakit_lora::Sequence::expert`] names, and none if it names none.
///
/// # Errors
/// If a tensor cannot be made.
pub fn expert_per_row(experts: &LibraryStack) -> Result<Patches> {
    site_patches(experts, |_, site, stack| {
        // Chosen for each projection alone, since those of one expert stand apart in the stack unless A is tied.
        let mixture = Mixture::new(Mixing::Outputs, RoutingScope::Projection, experts, site, stack)?;
        Ok(Some(Arc::new(ExpertPerRow { mixture, experts: experts.len(), projections: site.projections.len() })))
    })
}

struct ExpertPerRow {
    mixture: Mixture,
    experts: usize,
    projections: usize,
}

impl Patch for ExpertPerRow {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        self.begin(x, rows)?(out)
    }

    fn begin<'a>(&'a self, x: &'a Tensor, rows: &'a SequenceBatch) -> candle_core::Result<Addition<'a>> {
        let mut groups = Vec::new();
        for row in rows.iter() {
            let Some(expert) = row.expert else { continue };
            if expert >= self.experts {
                bail!("a row belongs to expert {expert} of {}", self.experts);
            }
            groups.extend((0..self.projections).map(|projection| TokenGroup {
                expert: projection * self.experts + expert,
                tokens: TokenSelection::Contiguous(row.tokens()),
                weights: None,
            }));
        }
        self.mixture.begin(x, groups.into())
    }
}
