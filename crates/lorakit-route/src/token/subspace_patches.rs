//! The patches of routers that score experts by the subspaces that their deltas read.

use crate::error::Result;
use crate::fixed::uniform::uniform_patch;
use crate::library_stack::LibraryStack;
use crate::mixing::Mixing;
use crate::site_patches::site_patches;
use crate::stack::Stack;
use crate::token::subspaces::{SubspaceMeasure, Subspaces};
use lorakit_lora::{Patch, Patches, Site, SiteRole};
use std::sync::Arc;

/// The patch of each site that has candidates, from its subspaces and its candidates by projection. At an embedding every
/// expert has weight 1/n.
///
/// # Errors
/// The first error of `make`, in the order of sites, or if a tensor cannot be made.
pub(crate) fn subspace_patches(
    experts: &LibraryStack,
    measure: SubspaceMeasure,
    make: impl Fn((usize, &Site, &Stack), Subspaces, Vec<Vec<u32>>) -> Result<Arc<dyn Patch>> + Sync,
) -> Result<Patches> {
    site_patches(experts, |index, site, stack| {
        if site.role == SiteRole::Embedding {
            return uniform_patch(Mixing::Outputs, experts, site, stack);
        }
        let Some((subspaces, candidates)) = Subspaces::new(experts, site, stack, measure)? else { return Ok(None) };
        make((index, site, stack), subspaces, candidates).map(Some)
    })
}
