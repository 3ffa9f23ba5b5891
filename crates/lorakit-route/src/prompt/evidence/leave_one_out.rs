//! The fallbacks of [`Evidence`] over a library of which one expert is left out: what they do for prompts that no expert
//! fits.
//!
//! They read the library's own stacks, in which that expert is masked: nothing is stacked anew, and Arrow's prototypes are
//! computed once, whichever expert is left out. (On a GPU, weights of all experts are prepared for each.)

use crate::error::Result;
use crate::fixed::uniform::uniform_patch_without;
use crate::library_stack::LibraryStack;
use crate::mixing::Mixing;
use crate::ordered_results::ordered_results;
use crate::prompt::evidence::{Evidence, Fallback};
use crate::site_patches::site_patches;
use crate::stack::Stack;
use crate::token::token_routing::TokenRouting;
use lorakit_lora::{Patch, Patches, Site, SiteRole};
use rayon::prelude::*;
use std::sync::Arc;

/// The fallbacks over a library without any one of its experts.
pub struct LeaveOneOut<'a> {
    experts: &'a LibraryStack,
    mixing: Mixing,
    /// Arrow over all experts at each site, by its index.
    arrow: Vec<Option<TokenRouting>>,
}

impl<'a> LeaveOneOut<'a> {
    /// Prepares the fallbacks of `evidence`.
    ///
    /// # Errors
    /// Under separate mixing, if ranks differ at a projection.
    pub fn new(evidence: &Evidence, experts: &'a LibraryStack) -> Result<Self> {
        let arrow = evidence.arrow();
        let routing = |(index, site, stack): (usize, &Site, &Stack)| -> Result<_> {
            let routing = match site.role {
                SiteRole::Embedding => None,
                _ => arrow.routing(experts, (index, site, stack), None)?,
            };
            stack.device().synchronize()?;
            Ok((index, routing))
        };
        let made = ordered_results(experts.all_stacks().collect::<Vec<_>>().into_par_iter().map(routing))?;
        let mut arrow: Vec<Option<TokenRouting>> = experts.sites().iter().map(|_| None).collect();
        made.into_iter().for_each(|(index, routing)| arrow[index] = routing);
        Ok(Self { experts, mixing: evidence.mixing, arrow })
    }

    /// The patches of a fallback, alone on every token, without the expert of index `left_out`.
    ///
    /// # Errors
    /// Under separate mixing, if ranks differ at a projection.
    pub fn patches(&self, fallback: Fallback, left_out: usize) -> Result<Patches> {
        let mean = |site: &Site, stack: &Stack| uniform_patch_without(left_out, self.mixing, self.experts, site, stack);
        match fallback {
            Fallback::Base => Ok(Patches::none()),
            Fallback::Uniform => site_patches(self.experts, |_, site, stack| mean(site, stack)),
            Fallback::Arrow => site_patches(self.experts, |index, site, stack| match site.role {
                SiteRole::Embedding => mean(site, stack),
                _ => {
                    let routing = self.arrow[index].as_ref().and_then(|arrow| arrow.without(left_out));
                    Ok(routing.map(|routing| Arc::new(routing) as Arc<dyn Patch>))
                }
            }),
        }
    }
}
