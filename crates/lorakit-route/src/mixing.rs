//! The two ways of combining chosen experts into one delta.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::site_lora::SiteLora;
use crate::stack::{RoutingScope, Stack};
use candle_core::{DType, Tensor};
use lorakit_adapter::Matrix;
use lorakit_lora::{
    Addition, ExpertFactors, FactorRows, GroupedLora, PerTokenLora, Site, StackBlock, StackLayout, TokenGroup,
};
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

/// The experts of a site, to be mixed by groups of slots. Clones share the matrices.
#[derive(Clone)]
pub(crate) enum Mixture {
    Outputs(SiteLora),
    /// Two products with the mixed `z` between them, `[tokens, sum of the projections' ranks]`: the first has the identity
    /// for its B, the second for its A.
    Separate {
        shrink: SiteLora,
        expand: SiteLora,
    },
}

impl Mixture {
    /// The experts of a site, with the slots of a routing scope: in their own matrices where products can read those, else
    /// stacked.
    pub(crate) fn new(
        mixing: Mixing,
        scope: RoutingScope,
        experts: &LibraryStack,
        site: &Site,
        stack: &Stack,
    ) -> Result<Self> {
        let Some(slots) = stack.own_slots(scope) else {
            return Self::stacked(mixing, scope, experts, site, stack);
        };
        match mixing {
            Mixing::Outputs => {
                let own = GroupedLora::unstacked(slots, stack.input(), stack.output())?;
                Ok(Self::Outputs(SiteLora(own)))
            }
            Mixing::Separate => Spans::of(experts, site, stack)?.own(&slots, stack),
        }
    }

    /// The same, stacked.
    pub(crate) fn stacked(
        mixing: Mixing,
        scope: RoutingScope,
        experts: &LibraryStack,
        site: &Site,
        stack: &Stack,
    ) -> Result<Self> {
        let layout = stack.layout(scope);
        match mixing {
            Mixing::Outputs => Ok(Self::Outputs(SiteLora(stack.grouped(layout)?))),
            Mixing::Separate => Spans::of(experts, site, stack)?.stacked(&layout, stack),
        }
    }

    /// What adds the mixed delta of `groups` over `x`, `[tokens, in]`. The experts are f32; for a model of another type the
    /// delta is rounded once, at the end.
    pub(crate) fn begin<'a>(&'a self, x: &'a Tensor, groups: Arc<[TokenGroup]>) -> candle_core::Result<Addition<'a>> {
        if groups.is_empty() {
            return Ok(Box::new(|_| Ok(())));
        }
        match self {
            Self::Outputs(experts) => experts.begin(x, groups),
            Self::Separate { shrink, expand } => {
                let z = shrink.delta(x, groups.clone())?;
                Ok(Box::new(move |out| expand.add(&z, groups, out)))
            }
        }
    }
}

/// The columns of the mixed `z` that each projection has.
struct Spans {
    /// By the first column of the projection in the site's output.
    by_column: BTreeMap<usize, Range<usize>>,
    total: usize,
}

impl Spans {
    fn of(experts: &LibraryStack, site: &Site, stack: &Stack) -> Result<Self> {
        let (mut by_column, mut total) = (BTreeMap::new(), 0);
        for ((_, columns), rank) in site.columns().zip(stack.equal_ranks(site, experts.names())?) {
            by_column.insert(columns.start, total..total + rank);
            total += rank;
        }
        Ok(Self { by_column, total })
    }

    /// Separate mixing of stacked experts.
    fn stacked(&self, layout: &StackLayout, stack: &Stack) -> Result<Mixture> {
        let through = |replace: &dyn Fn(&StackBlock, Range<usize>) -> StackBlock| {
            let replace = |block: &StackBlock| replace(block, self.by_column[&block.columns.start].clone());
            Arc::new(StackLayout(layout.0.iter().map(|blocks| blocks.iter().map(replace).collect()).collect()))
        };
        let shrink = through(&|block, z| StackBlock { a: block.a.clone(), b: z.clone(), columns: z, scale: 1.0 });
        let expand = through(&|block, z| StackBlock { a: z, ..block.clone() });
        let identity = Tensor::eye(self.total, DType::F32, stack.device())?;
        Ok(Mixture::Separate {
            shrink: SiteLora(GroupedLora::new(stack.a()?.clone(), identity.clone(), shrink)?),
            expand: SiteLora(GroupedLora::new(identity, stack.b()?.clone(), expand)?),
        })
    }

    /// Separate mixing of experts in their own matrices.
    fn own(&self, slots: &[Vec<ExpertFactors>], stack: &Stack) -> Result<Mixture> {
        let of_z = identity(self.total)?;
        let of_ranks = self.by_column.iter().map(|(column, z)| Ok((*column, identity(z.len())?)));
        let of_ranks: BTreeMap<usize, Arc<FactorRows>> = of_ranks.collect::<Result<_>>()?;
        let shrink = |factors: &ExpertFactors| {
            let column = factors.columns.start;
            let (b, columns) = (of_ranks[&column].clone(), self.by_column[&column].clone());
            ExpertFactors { b, columns, scale: 1.0, ..factors.clone() }
        };
        let expand = |factors: &ExpertFactors| {
            let rows = self.by_column[&factors.columns.start].clone();
            ExpertFactors { a: of_z.clone(), rows, ..factors.clone() }
        };
        let through = |replace: &dyn Fn(&ExpertFactors) -> ExpertFactors| {
            slots.iter().map(|own| own.iter().map(replace).collect()).collect()
        };
        Ok(Mixture::Separate {
            shrink: SiteLora(GroupedLora::unstacked(through(&shrink), stack.input(), self.total)?),
            expand: SiteLora(GroupedLora::unstacked(through(&expand), self.total, stack.output())?),
        })
    }
}

/// The identity, `[width, width]`.
fn identity(width: usize) -> Result<Arc<FactorRows>> {
    let value = |at: usize| f32::from(at / width == at % width);
    Ok(Arc::new(FactorRows::of(Matrix::new(width, width, (0..width * width).map(value).collect())?)))
}

/// The same experts, with a weight for each token and slot.
pub(crate) enum TokenMixture {
    Outputs(PerTokenLora),
    Separate { shrink: PerTokenLora, expand: PerTokenLora },
}

impl Mixture {
    /// Prepares the experts of `slots`, which are stacked, for weights in that order.
    pub(crate) fn per_token(&self, slots: &[usize]) -> candle_core::Result<TokenMixture> {
        let prepare = |experts: &SiteLora| PerTokenLora::new(&experts.0, slots);
        Ok(match self {
            Self::Outputs(experts) => TokenMixture::Outputs(prepare(experts)?),
            Self::Separate { shrink, expand } => {
                TokenMixture::Separate { shrink: prepare(shrink)?, expand: prepare(expand)? }
            }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::library_stack::Expert;
    use candle_core::Device;
    use lorakit_adapter::{Adapter, LowRank};
    use lorakit_lora::{Outputs, Projection, SiteRole, TokenSelection};

    const INPUT: usize = 40;
    const OUTPUT: usize = 37;
    const EXPERTS: usize = 5;

    /// Values in (-1, 1) that look random.
    fn values(seed: usize, count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7 + seed * 131) as f32 * 0.61).sin()).collect()
    }

    fn site() -> Site {
        let projection = |(name, width): (&str, usize)| Projection { module: name.to_owned(), width };
        let projections = [("q", 20), ("k", 8), ("v", 9)].map(projection).into();
        Site { layer: Some(0), name: "qkv", role: SiteRole::AttentionInput, input: INPUT, projections }
    }

    /// Experts whose A's are their projections' own, or one for all; one of them lacks a projection.
    fn library(site: &Site, rank: usize, tied: bool) -> LibraryStack {
        let expert = |e: usize| {
            let pair = |(i, projection): (usize, &Projection)| {
                let seed = 10 * e + if tied { 0 } else { i };
                let a = Matrix::new(rank, INPUT, values(seed, rank * INPUT)).unwrap();
                let b = Matrix::new(projection.width, rank, values(50 + 10 * e + i, projection.width * rank)).unwrap();
                (projection.module.clone(), LowRank::new(a, b, 0.5 + e as f64).unwrap())
            };
            let kept = site.projections.iter().enumerate().filter(|(i, _)| *i != 1 || e != 2);
            Expert::new(format!("e{e}"), Adapter::new(kept.map(pair).collect()))
        };
        LibraryStack::new((0..EXPERTS).map(expert), std::slice::from_ref(site), &Device::Cpu).unwrap()
    }

    /// Runs and lists of tokens, some of two slots.
    fn groups(slots: usize, tokens: usize) -> Arc<[TokenGroup]> {
        let group = |expert: usize| {
            let first = expert % 3;
            let listed: Vec<u32> = (0..tokens as u32).filter(|token| *token as usize % 4 == first).collect();
            let (tokens, count) = match expert % 2 {
                0 => (TokenSelection::Contiguous(0..tokens), tokens),
                _ => (TokenSelection::Indices(listed.clone()), listed.len()),
            };
            TokenGroup { expert, tokens, weights: Some(values(expert, count)) }
        };
        (0..slots).map(group).collect::<Vec<_>>().into()
    }

    /// Every bit, of one token and of several chunks, in every mixing and scope, below and above the rank of narrow products.
    #[test]
    fn experts_in_their_own_matrices_give_the_bits_of_stacked_ones() {
        let site = site();
        let bits = |values: &Tensor| -> Vec<u32> {
            values.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
        };
        for (rank, tied, scope) in [
            (3, false, RoutingScope::Projection),
            (18, false, RoutingScope::Projection),
            (4, true, RoutingScope::Projection),
            (4, true, RoutingScope::Site),
            (4, false, RoutingScope::Site),
        ] {
            let experts = library(&site, rank, tied);
            let (_, _, stack) = experts.stacks().next().unwrap();
            assert_eq!(stack.own_slots(scope).is_some(), tied || scope == RoutingScope::Projection);
            let slots = stack.layout(scope).0.len();
            for (mixing, tokens) in [Mixing::Outputs, Mixing::Separate].into_iter().flat_map(|m| [(m, 1), (m, 150)]) {
                let x = Tensor::from_vec(values(9, tokens * INPUT), (tokens, INPUT), &Device::Cpu).unwrap();
                let before = Tensor::from_vec(values(8, tokens * OUTPUT), (tokens, OUTPUT), &Device::Cpu).unwrap();
                let [own, stacked] = [Mixture::new, Mixture::stacked].map(|mixture| {
                    let mixture = mixture(mixing, scope, &experts, &site, stack).unwrap();
                    let mut out = Outputs::new(before.copy().unwrap());
                    mixture.begin(&x, groups(slots, tokens)).unwrap()(&mut out).unwrap();
                    bits(out.tensor())
                });
                assert_eq!(own, stacked, "rank {rank}, tied {tied}, {scope:?}, {mixing:?}, {tokens} tokens");
                assert_ne!(own, bits(&before));
            }
        }
    }
}
