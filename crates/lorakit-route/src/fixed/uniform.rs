//! Uniform mixing: every expert of the library on every token, each at weight 1 / n, or all of them stronger.

use crate::error::Result;
use crate::fixed::every_token::EveryToken;
use crate::library_stack::LibraryStack;
use crate::method_info::MethodInfo;
use crate::method_settings::{Settings, above_zero, defaults, joined, read};
use crate::mixing::Mixing;
use crate::router::{Router, RouterContext};
use crate::settings_text::to_pairs;
use crate::site_lora::SiteLora;
use crate::site_patches::site_patches;
use crate::stack::Stack;
use candle_core::Tensor;
use lorakit_lora::{GroupedLora, Patch, Patches, Site, StackBlock, StackLayout};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// The router `uniform`.
pub static UNIFORM: MethodInfo<dyn Router> = MethodInfo {
    name: "uniform",
    aliases: &[],
    summary: "every expert at weight 1/n",
    link: Some("https://arxiv.org/abs/2405.11157"),
    defaults: defaults::<Uniform>,
    parse: |name, typed| Ok(Arc::new(read::<Uniform>(name, typed)?)),
    version: 1,
};

/// The router `uniform`: weight `1 / n` for each of the library's `n` experts (μ of
/// <https://arxiv.org/abs/2405.11157>). An expert that a site lacks adds nothing there and still counts in `n`.
///
/// A mean of experts that point in different directions is shorter than each of them. `scale` makes up for it, so that a
/// router that is compared with the mean wins by its choice and not by its strength.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Uniform {
    /// How the experts' deltas are combined; `separate` averages the A's and the B's, and needs equal ranks.
    pub mixing: Mixing,
    /// What the mean is multiplied by.
    pub scale: f32,
}

impl Default for Uniform {
    fn default() -> Self {
        Self { mixing: Mixing::Outputs, scale: 1.0 }
    }
}

impl Settings for Uniform {
    fn validate(&self) -> std::result::Result<(), String> {
        above_zero("scale", self.scale)
    }
}

impl fmt::Display for Uniform {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // A scale of one is left out: the text is that of older versions, which caches are keyed by.
        let shown =
            to_pairs(self).map_err(|_| fmt::Error)?.into_iter().filter(|(key, _)| self.scale != 1.0 || *key != "scale");
        write!(f, "{}:{}", UNIFORM.name, joined(shown))
    }
}

impl Router for Uniform {
    fn info(&self) -> &'static MethodInfo<dyn Router> {
        &UNIFORM
    }

    fn mixing(&self) -> Mixing {
        self.mixing
    }

    /// # Errors
    /// Under separate mixing, if ranks differ at a projection.
    fn patches(&self, experts: &LibraryStack, _: &RouterContext) -> Result<Patches> {
        site_patches(experts, |_, site, stack| scaled_patch(self, AveragedExperts::all(experts), site, stack))
    }
}

/// The patch of one site for a router which has no vectors of the experts there: their mean.
pub(crate) fn uniform_patch(
    mixing: Mixing,
    experts: &LibraryStack,
    site: &Site,
    stack: &Stack,
) -> Result<Option<Arc<dyn Patch>>> {
    scaled_patch(&Uniform { mixing, ..Uniform::default() }, AveragedExperts::all(experts), site, stack)
}

/// The mean of all experts but one at a site; none if only that one changes it.
///
/// # Errors
/// Under separate mixing, if ranks differ at a projection, be it those of the one that is left out.
pub(crate) fn uniform_patch_without(
    left_out: usize,
    mixing: Mixing,
    experts: &LibraryStack,
    site: &Site,
    stack: &Stack,
) -> Result<Option<Arc<dyn Patch>>> {
    let averaged = AveragedExperts { experts, left_out: Some(left_out) };
    scaled_patch(&Uniform { mixing, ..Uniform::default() }, averaged, site, stack)
}

/// The experts whose mean is taken: all of a library, but one that may be left out.
#[derive(Clone, Copy)]
struct AveragedExperts<'a> {
    experts: &'a LibraryStack,
    left_out: Option<usize>,
}

impl<'a> AveragedExperts<'a> {
    fn all(experts: &'a LibraryStack) -> Self {
        Self { experts, left_out: None }
    }

    fn has(&self, expert: usize) -> bool {
        Some(expert) != self.left_out
    }

    fn count(&self) -> usize {
        self.experts.len() - usize::from(self.left_out.is_some())
    }
}

/// The patch of one site.
fn scaled_patch(
    uniform: &Uniform,
    averaged: AveragedExperts,
    site: &Site,
    stack: &Stack,
) -> Result<Option<Arc<dyn Patch>>> {
    if !stack.projections().flatten().any(|(expert, _)| averaged.has(expert)) {
        return Ok(None);
    }
    let weight = uniform.scale / averaged.count() as f32;
    let grouped = match (uniform.mixing, averaged.left_out) {
        (Mixing::Outputs, None) => stack.weighted_sum(|_, _| weight)?,
        (Mixing::Outputs, Some(left_out)) => {
            stack.weighted_sum(|_, expert| if expert == left_out { 0.0 } else { weight })?
        }
        (Mixing::Separate, _) => mean_factors(averaged, uniform.scale, site, stack)?,
    };
    Ok(Some(Arc::new(EveryToken(SiteLora(grouped)))))
}

/// The one expert whose A is the mean of the A's, and whose B is `scale` times the mean of the scaled B's.
fn mean_factors(averaged: AveragedExperts, scale: f32, site: &Site, stack: &Stack) -> Result<GroupedLora> {
    let n = averaged.count();
    let ranks = stack.equal_ranks(site, averaged.experts.names())?;
    let most = ranks.iter().copied().max().unwrap_or(0);
    let (mut a_means, mut b_means, mut own, mut before) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for (((_, columns), projection), rank) in site.columns().zip(stack.projections()).zip(ranks) {
        let blocks: Vec<StackBlock> =
            projection.filter(|(expert, _)| averaged.has(*expert)).map(|(_, block)| block.clone()).collect();
        let b = stack.b()?.narrow(1, columns.start, columns.len())?.contiguous()?;
        if rank > 0 {
            a_means.push(mean(stack.a()?, n, rank, blocks.iter().map(|block| (block.a.start, 1.0)))?);
            own.push(StackBlock { a: before..before + rank, b: 0..rank, columns, scale: 1.0 });
            before += rank;
        }
        let b = mean(&b, n, rank, blocks.iter().map(|block| (block.b.start, scale * block.scale)))?;
        b_means.push(b.pad_with_zeros(0, 0, most - rank)?);
    }
    let (a, b) = (Tensor::cat(&a_means, 0)?, Tensor::cat(&b_means, 1)?);
    Ok(GroupedLora::new(a, b, Arc::new(StackLayout(vec![own])))?)
}

/// `1/n` of the weighted sum of segments of `rank` rows, each given by its first row and weight: one product with a
/// matrix that selects and weighs the rows.
fn mean(stacked: &Tensor, n: usize, rank: usize, segments: impl Iterator<Item = (usize, f32)>) -> Result<Tensor> {
    let rows = stacked.dim(0)?;
    let mut selection = vec![0.0; rank * rows];
    for (start, weight) in segments {
        (0..rank).for_each(|k| selection[k * rows + start + k] = weight / n as f32);
    }
    Ok(Tensor::from_vec(selection, (rank, rows), stacked.device())?.matmul(stacked)?)
}
