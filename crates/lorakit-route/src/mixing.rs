//! The two ways of combining chosen experts into one delta.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::stack::{RoutingScope, Stack};
use candle_core::{DType, Tensor};
use lorakit_lora::{Addition, GroupedLora, Outputs, PerTokenLora, Site, StackBlock, StackLayout, TokenGroup};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// How the chosen experts' deltas are combined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mixing {
    /// Outputs are mixed, as PEFT does: `sum_j s_j w_j B_j (A_j x)`. Experts of any rank and alpha mix.
    #[default]
    Outputs,
    /// A's and B's are mixed separately, as the papers do: `sum_j s_j w_j B_j z` with `z = sum_i w_i A_i x`
    /// (<https://arxiv.org/abs/2405.11157>). An expert's own term then weighs `w²`, and ranks must be equal.
    Separate,
}

/// The stacked experts of a site, to be mixed by groups of slots. Clones share the matrices.
#[derive(Clone)]
pub(crate) enum Mixture {
    Outputs(GroupedLora),
    /// Two grouped products with the mixed `z` between them, `[tokens, sum of the projections' ranks]`: the first
    /// has the identity for its B, the second for its A.
    Separate {
        shrink: GroupedLora,
        expand: GroupedLora,
    },
}

impl Mixture {
    /// The experts of a site, with the slots of a routing scope.
    pub(crate) fn new(
        mixing: Mixing,
        choice: RoutingScope,
        experts: &LibraryStack,
        site: &Site,
        stack: &Stack,
    ) -> Result<Self> {
        let layouts = stack.layouts(choice);
        match mixing {
            Mixing::Outputs => Ok(Self::Outputs(stack.grouped(layouts)?)),
            Mixing::Separate => {
                let ranks = stack.equal_ranks(site, experts.names())?;
                Self::separate(&ranks, layouts, site, stack)
            }
        }
    }

    fn separate(ranks: &[usize], layouts: StackLayout, site: &Site, stack: &Stack) -> Result<Self> {
        let mut total = 0;
        let mut spans: BTreeMap<usize, Range<usize>> = BTreeMap::new();
        for ((_, columns), rank) in site.columns().zip(ranks) {
            spans.insert(columns.start, total..total + rank);
            total += rank;
        }
        let through = |replace: &dyn Fn(&StackBlock, Range<usize>) -> StackBlock| {
            let blocks =
                |blocks: &Vec<StackBlock>| blocks.iter().map(|k| replace(k, spans[&k.columns.start].clone())).collect();
            Arc::new(StackLayout(layouts.0.iter().map(blocks).collect()))
        };
        let shrink = through(&|block, z| StackBlock { a: block.a.clone(), b: z.clone(), columns: z, scale: 1.0 });
        let expand = through(&|block, z| StackBlock { a: z, ..block.clone() });
        let identity = Tensor::eye(total, DType::F32, stack.a().device())?;
        Ok(Self::Separate {
            shrink: GroupedLora::new(stack.a().clone(), identity.clone(), shrink)?,
            expand: GroupedLora::new(identity, stack.b().clone(), expand)?,
        })
    }

    /// What adds the mixed delta of `groups` over `x`, `[tokens, in]`. The experts are f32; for a model of another type the
    /// delta is rounded once, at the end.
    pub(crate) fn begin<'a>(&'a self, x: &'a Tensor, groups: Arc<[TokenGroup]>) -> candle_core::Result<Addition<'a>> {
        if groups.is_empty() {
            return Ok(Box::new(|_| Ok(())));
        }
        match self {
            Self::Outputs(grouped) => begin(grouped, x, groups),
            Self::Separate { shrink, expand } => {
                let z = shrink.delta(&x.to_dtype(DType::F32)?, groups.clone())?;
                Ok(Box::new(move |out| add(expand, &z, groups, out)))
            }
        }
    }
}

/// The same experts, with a weight for each token and slot.
pub(crate) enum TokenMixture {
    Outputs(PerTokenLora),
    Separate { shrink: PerTokenLora, expand: PerTokenLora },
}

impl Mixture {
    /// Prepares the experts of `slots` for weights in that order.
    pub(crate) fn token_gated(&self, slots: &[usize]) -> candle_core::Result<TokenMixture> {
        Ok(match self {
            Self::Outputs(grouped) => TokenMixture::Outputs(PerTokenLora::new(grouped, slots)?),
            Self::Separate { shrink, expand } => TokenMixture::Separate {
                shrink: PerTokenLora::new(shrink, slots)?,
                expand: PerTokenLora::new(expand, slots)?,
            },
        })
    }
}

impl TokenMixture {
    /// The mixed delta over `x`, `[tokens, in]`, with `weights`, `[tokens, slots]`.
    pub(crate) fn delta(&self, x: &Tensor, weights: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Outputs(experts) => experts.delta(x, weights),
            Self::Separate { shrink, expand } => expand.delta(&shrink.delta(x, weights)?, weights),
        }
    }
}

/// What adds one grouped product to outputs of any float type.
pub(crate) fn begin<'a>(
    grouped: &'a GroupedLora,
    x: &'a Tensor,
    groups: Arc<[TokenGroup]>,
) -> candle_core::Result<Addition<'a>> {
    if x.device().is_cpu() && x.dtype() == DType::F32 {
        return grouped.begin(x, groups);
    }
    Ok(Box::new(move |out| add(grouped, x, groups, out)))
}

fn add(grouped: &GroupedLora, x: &Tensor, groups: Arc<[TokenGroup]>, out: &mut Outputs) -> candle_core::Result<()> {
    let dtype = out.tensor().dtype();
    if dtype == DType::F32 {
        return grouped.add(&x.to_dtype(DType::F32)?, groups, out);
    }
    out.add(&grouped.delta(&x.to_dtype(DType::F32)?, groups)?.to_dtype(dtype)?)
}
