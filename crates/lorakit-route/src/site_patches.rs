//! Builds the patches of all sites in parallel.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::ordered_results::ordered_results;
use crate::stack::Stack;
use lorakit_lora::{EmbeddingPatch, Patch, Patches, Site, SiteRole};
use rayon::prelude::*;
use std::sync::Arc;

/// Makes the patch of every site that any expert touches, in parallel, the embedding and the head among them; sites for
/// which `make` returns none have no patch. At the embedding a patch reads rows of the stack's table.
///
/// # Errors
/// The first error of `make`, in the order of sites.
pub(crate) fn site_patches(
    experts: &LibraryStack,
    make: impl Fn(usize, &Site, &Stack) -> Result<Option<Arc<dyn Patch>>> + Sync,
) -> Result<Patches> {
    let touched: Vec<(usize, &Site, &Stack)> = experts.all_stacks().collect();
    let made = ordered_results(touched.into_par_iter().map(|(index, site, stack)| -> Result<_> {
        let made = (index, site, stack, make(index, site, stack)?);
        // `Device::new_cuda` gives each thread a stream of its own: what others launch next needs this one to be done.
        stack.device().synchronize()?;
        Ok(made)
    }))?;
    let (mut by_site, mut embedding, mut head) = (vec![None; experts.sites().len()], None, None);
    for (index, site, stack, patch) in made {
        match (site.role, stack.table()?) {
            (SiteRole::LmHead, _) => head = patch,
            (_, Some(table)) => embedding = patch.map(|patch| EmbeddingPatch { table: table.clone(), patch }),
            (_, None) => by_site[index] = patch,
        }
    }
    let mut patches = Patches::new(by_site);
    if let Some(patch) = embedding {
        patches = patches.with_embedding(patch);
    }
    Ok(match head {
        Some(patch) => patches.with_head(patch),
        None => patches,
    })
}
