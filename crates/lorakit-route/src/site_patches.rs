//! Builds the patches of all sites in parallel.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::stack::Stack;
use lorakit_lora::{Patch, Patches, Site};
use rayon::prelude::*;
use std::sync::Arc;

/// Makes the patch of every site that any expert touches, in parallel; sites for which `make` returns none have no patch.
///
/// # Errors
/// The first error of `make`.
pub(crate) fn site_patches(
    experts: &LibraryStack,
    make: impl Fn(usize, &Site, &Stack) -> Result<Option<Arc<dyn Patch>>> + Sync,
) -> Result<Patches> {
    let touched: Vec<(usize, &Site, &Stack)> = experts.stacks().collect();
    let made: Vec<_> = touched
        .into_par_iter()
        .map(|(index, site, stack)| {
            let made = (index, make(index, site, stack)?);
            // A GPU gives each thread a stream of its own; what another thread launches next needs this one to be done.
            stack.a().device().synchronize()?;
            Ok(made)
        })
        .collect::<Result<_>>()?;
    let mut by_site = vec![None; experts.sites().len()];
    made.into_iter().for_each(|(index, patch)| by_site[index] = patch);
    Ok(Patches::new(by_site))
}
