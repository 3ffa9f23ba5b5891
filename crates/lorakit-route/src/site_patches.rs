//! Builds the patches of all sites in parallel.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::stack::Stack;
use candle_core::Device;
use lorakit_lora::{Patch, Patches, Site};
use rayon::prelude::*;
use std::sync::Arc;

/// Waits until a card has done what this thread asked of it: each thread has a queue of its own there, and what another
/// one asks next is to find it done.
pub(crate) fn synchronize(device: &Device) -> candle_core::Result<()> {
    device.synchronize()
}

/// Makes the patch of every site that any expert touches, in parallel; sites that `make` gives none stay as they are.
pub(crate) fn site_patches(
    experts: &LibraryStack,
    make: impl Fn(usize, &Site, &Stack) -> Result<Option<Arc<dyn Patch>>> + Sync,
) -> Result<Patches> {
    let touched: Vec<(usize, &Site, &Stack)> = experts.stacks().collect();
    let made: Vec<_> = touched
        .into_par_iter()
        .map(|(index, site, stack)| {
            let made = (index, make(index, site, stack)?);
            synchronize(stack.a().device())?;
            Ok(made)
        })
        .collect::<Result<_>>()?;
    let mut by_site = vec![None; experts.sites().len()];
    made.into_iter().for_each(|(index, patch)| by_site[index] = patch);
    Ok(Patches::new(by_site))
}
