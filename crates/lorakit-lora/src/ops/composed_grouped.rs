//! The deltas of [`GroupedLora`] composed of candle's own ops.

use crate::ops::grouped_lora::GroupedLora;
use crate::ops::token_group::{TokenGroup, TokenSelection};
use crate::stack_layout::StackBlock;
use candle_core::{Device, Result, Tensor, bail};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

impl GroupedLora {
    /// The same as [`GroupedLora::delta`] on any device; the reference that tests compare with.
    ///
    /// For each projection `delta = (g * (x Aᵀ)) B`, where `A` and `B` are the rows of all experts that the batch uses, and
    /// `g` is the token's factor for each of their ranks: `w s`, or zero. Few and large products, and nothing wider than
    /// the ranks of those experts; but a token pays for all experts of its batch, not only its own.
    pub fn composed_delta(&self, x: &Tensor, groups: &[TokenGroup]) -> Result<Tensor> {
        let (x, width) = (x.contiguous()?, self.stacked()?.1.dim(1)?);
        let part = |(columns, blocks): (Range<usize>, ProjectionBlocks)| {
            let z = x.matmul(&blocks.a(self)?.t()?)?;
            let factors = blocks.factors(x.dim(0)?, groups, x.device())?;
            let delta = (z * factors)?.matmul(&blocks.b(self, &columns)?)?;
            Ok((columns, delta))
        };
        let named: BTreeSet<usize> = groups.iter().map(|group| group.expert).collect();
        let parts = self.by_projection(named).into_iter().map(part).collect::<Result<Vec<_>>>()?;
        side_by_side(parts, width, &x)
    }

    /// The blocks of some experts by the columns that they fill, from left to right.
    pub(crate) fn by_projection(&self, experts: BTreeSet<usize>) -> Vec<(Range<usize>, ProjectionBlocks<'_>)> {
        let mut projections: BTreeMap<(usize, usize), ProjectionBlocks> = BTreeMap::new();
        for expert in experts {
            for block in self.layout.0.get(expert).into_iter().flatten() {
                let projection = projections.entry((block.columns.start, block.columns.end)).or_default();
                projection.0.push((expert, block));
            }
        }
        projections.into_iter().map(|((start, end), blocks)| (start..end, blocks)).collect()
    }
}

/// Deltas of some columns each, from left to right, with zeros between them: `[tokens of x, width]`.
pub(crate) fn side_by_side(parts: Vec<(Range<usize>, Tensor)>, width: usize, x: &Tensor) -> Result<Tensor> {
    let zeros = |width| Tensor::zeros((x.dim(0)?, width), x.dtype(), x.device());
    let (mut delta, mut end) = (Vec::new(), 0);
    for (columns, part) in parts {
        if columns.start < end {
            bail!("blocks of columns {columns:?} overlap those before them, which end at {end}");
        }
        if columns.start > end {
            delta.push(zeros(columns.start - end)?);
        }
        end = columns.end;
        delta.push(part);
    }
    if end < width {
        delta.push(zeros(width - end)?);
    }
    if let [one] = delta.as_slice() { Ok(one.clone()) } else { Tensor::cat(&delta, 1) }
}

/// Blocks of the same columns, each with its expert, in the order of their ranks between A and B.
#[derive(Default)]
pub(crate) struct ProjectionBlocks<'a>(pub(crate) Vec<(usize, &'a StackBlock)>);

impl ProjectionBlocks<'_> {
    /// The blocks' A's, `[ranks, in]`.
    pub(crate) fn a(&self, grouped: &GroupedLora) -> Result<Tensor> {
        self.rows(grouped.stacked()?.0, |block| &block.a)
    }

    /// The blocks' B's, transposed, `[ranks, columns]`.
    pub(crate) fn b(&self, grouped: &GroupedLora, columns: &Range<usize>) -> Result<Tensor> {
        self.rows(grouped.stacked()?.1, |block| &block.b)?.narrow(1, columns.start, columns.len())?.contiguous()
    }

    /// The blocks' rows of a stacked matrix: a view if consecutive, else gathered.
    fn rows(&self, stacked: &Tensor, range: fn(&StackBlock) -> &Range<usize>) -> Result<Tensor> {
        let mut ranges = self.0.iter().map(|(_, block)| range(block).clone());
        let first = ranges.next().unwrap_or_default();
        match ranges.try_fold(first, |all, next| (all.end == next.start).then_some(all.start..next.end)) {
            Some(all) => stacked.narrow(0, all.start, all.len()),
            None => {
                let rows: Vec<u32> =
                    self.0.iter().flat_map(|(_, block)| range(block).clone()).map(|r| r as u32).collect();
                stacked.index_select(&Tensor::new(rows, stacked.device())?, 0)
            }
        }
    }

    /// Each token's factor for each rank, `[tokens, ranks of the blocks]`. One number per token and block goes to the device
    /// and is repeated over the block's ranks there.
    fn factors(&self, tokens: usize, groups: &[TokenGroup], device: &Device) -> Result<Tensor> {
        let blocks = self.0.len();
        let mut of_expert: HashMap<usize, Vec<usize>> = HashMap::new();
        self.0.iter().enumerate().for_each(|(i, (expert, _))| of_expert.entry(*expert).or_default().push(i));
        let mut factors = vec![0f32; tokens * blocks];
        for group in groups {
            let Some(own) = of_expert.get(&group.expert) else { continue };
            let mut add = |i: usize, token: usize| {
                let weight = group.weights.as_ref().map_or(1.0, |weights| weights[i]);
                own.iter().for_each(|&block| factors[token * blocks + block] += weight * self.0[block].1.scale);
            };
            match &group.tokens {
                TokenSelection::Contiguous(run) => run.clone().enumerate().for_each(|(i, token)| add(i, token)),
                TokenSelection::Indices(tokens) => {
                    tokens.iter().enumerate().for_each(|(i, &token)| add(i, token as usize))
                }
            }
        }
        let ranks = self.0.iter().enumerate().flat_map(|(i, (_, block))| std::iter::repeat_n(i as u32, block.b.len()));
        let ranks = Tensor::new(ranks.collect::<Vec<_>>(), device)?;
        Tensor::from_vec(factors, (tokens, blocks), device)?.index_select(&ranks, 1)
    }
}
