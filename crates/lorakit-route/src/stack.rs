//! The experts of one site, stacked into two matrices.
//!
//! The stacked, transposed B has one segment of rows for each expert, as many as its largest rank at the site; its
//! projections share those rows and differ in columns. The stacked A repeats the same segments for each projection,
//! or once if the A's of projections are tied. In B, the entries that an expert does not fill are zero and add nothing, so that
//! the whole library is a low-rank product of two plain matrices: uniform mixing needs no groups.
//!
//! At an embedding A reads a token id: the stacked A, transposed, is a table of rows by token, and in its place the
//! stack has the identity, which reads such a row.

use crate::error::{Result, RouteError};
use candle_core::{DType, Device, Tensor};
use lorakit_adapter::LowRank;
use lorakit_lora::{GroupedLora, Site, SiteRole, StackBlock, StackLayout};
use std::ops::Range;
use std::sync::Arc;

/// Each expert's module for each projection of a site: `modules[projection][expert]`.
pub(crate) type Modules<'a> = Vec<Vec<Option<&'a LowRank>>>;

/// The stacked experts of one site.
#[derive(Clone, Debug)]
pub struct Stack {
    a: Tensor,
    b: Tensor,
    blocks: Vec<Vec<Option<StackBlock>>>,
    /// The table of an embedding.
    table: Option<Tensor>,
}

impl Stack {
    /// Stacks the experts' modules at a site; none if no expert has any.
    pub(crate) fn of(site: &Site, modules: &Modules, device: &Device) -> Result<Option<Self>> {
        let plan = StackPlan::of(site, modules);
        if plan.ranks == 0 {
            return Ok(None);
        }
        let segments = plan.segments.iter().max().map_or(0, |last| last + 1);
        let mut a = vec![0.0; segments * plan.ranks * site.input];
        let mut b = vec![0.0; plan.ranks * site.output()];
        for (blocks, modules) in plan.blocks.iter().zip(modules) {
            for (block, module) in blocks.iter().zip(modules) {
                if let (Some(block), Some(module)) = (block, module) {
                    a[block.a.start * site.input..block.a.end * site.input].copy_from_slice(&module.a().values());
                    transpose_into(&mut b, site.output(), block, &module.b().values());
                }
            }
        }
        let rows = segments * plan.ranks;
        let a = Tensor::from_vec(a, (rows, site.input), device)?;
        let b = Tensor::from_vec(b, (plan.ranks, site.output()), device)?;
        let (a, table) = match site.role {
            SiteRole::Embedding => (Tensor::eye(rows, DType::F32, device)?, Some(a.t()?.contiguous()?)),
            _ => (a, None),
        };
        Ok(Some(Self { a, b, blocks: plan.blocks, table }))
    }

    /// The stacked A's, `[segments * ranks, in]`; at an embedding the identity.
    pub fn a(&self) -> &Tensor {
        &self.a
    }

    /// At an embedding, the stacked A's by token, `[vocabulary, ranks]`.
    pub fn table(&self) -> Option<&Tensor> {
        self.table.as_ref()
    }

    /// The stacked, transposed B's, `[ranks, out]`.
    pub fn b(&self) -> &Tensor {
        &self.b
    }

    /// The block of an expert for a projection; none if it does not change it.
    pub fn block(&self, projection: usize, expert: usize) -> Option<&StackBlock> {
        self.blocks[projection][expert].as_ref()
    }

    /// For each projection, the experts that change it with their blocks.
    pub(crate) fn projections(&self) -> impl Iterator<Item = impl Iterator<Item = (usize, &StackBlock)>> {
        self.blocks.iter().map(|blocks| blocks.iter().enumerate().filter_map(|(e, block)| Some((e, block.as_ref()?))))
    }

    /// The slots that are chosen from: experts of the whole site, or of each projection.
    pub(crate) fn layouts(&self, choice: RoutingScope) -> StackLayout {
        match choice {
            RoutingScope::Site => {
                let experts = self.blocks.first().map_or(0, Vec::len);
                let of = |expert: usize| self.blocks.iter().filter_map(|blocks| blocks[expert].clone()).collect();
                StackLayout((0..experts).map(of).collect())
            }
            RoutingScope::Projection => {
                StackLayout(self.blocks.iter().flatten().map(|block| block.iter().cloned().collect()).collect())
            }
        }
    }

    /// The stack as a grouped product with these slots.
    pub(crate) fn grouped(&self, layouts: StackLayout) -> Result<GroupedLora> {
        Ok(GroupedLora::new(self.a.clone(), self.b.clone(), Arc::new(layouts))?)
    }

    /// One expert alone, in matrices of its own; none if it has nothing at the site.
    pub(crate) fn only(&self, expert: usize) -> Result<Option<GroupedLora>> {
        let blocks: Vec<&StackBlock> = self.blocks.iter().filter_map(|blocks| blocks[expert].as_ref()).collect();
        let (Some(start), Some(end)) = (blocks.iter().map(|k| k.b.start).min(), blocks.iter().map(|k| k.b.end).max())
        else {
            return Ok(None);
        };
        let mut spans: Vec<Range<usize>> = Vec::new();
        let mut own = Vec::new();
        for block in blocks {
            if !spans.contains(&block.a) {
                spans.push(block.a.clone());
            }
            let before: usize = spans.iter().take_while(|span| **span != block.a).map(Range::len).sum();
            let b = block.b.start - start..block.b.end - start;
            own.push(StackBlock { a: before..before + block.a.len(), b, ..block.clone() });
        }
        // Copies, so that a patch of one expert does not keep the whole library in memory.
        let a = spans
            .iter()
            .map(|span| self.a.narrow(0, span.start, span.len())?.force_contiguous())
            .collect::<candle_core::Result<Vec<_>>>()?;
        let b = self.b.narrow(0, start, end - start)?.force_contiguous()?;
        Ok(Some(GroupedLora::new(Tensor::cat(&a, 0)?, b, Arc::new(StackLayout(vec![own])))?))
    }

    /// All experts as one, each at `weight`.
    pub(crate) fn together(&self, weight: f32) -> Result<GroupedLora> {
        self.weighed(|_, _| weight)
    }

    /// All experts as one, each at its weight for a projection and an expert: adjacent experts of equal scale are joined in
    /// one block, since the entries between them are zero in B.
    pub(crate) fn weighed(&self, weight: impl Fn(usize, usize) -> f32) -> Result<GroupedLora> {
        let mut together: Vec<StackBlock> = Vec::new();
        for (projection, experts) in self.projections().enumerate() {
            for (expert, block) in experts {
                let scale = block.scale * weight(projection, expert);
                match together.last_mut().filter(|last| last.columns == block.columns && last.scale == scale) {
                    Some(last) => (last.a.end, last.b.end) = (block.a.end, block.b.end),
                    None => together.push(StackBlock { scale, ..block.clone() }),
                }
            }
        }
        // Last, so that no block spans an expert that is left out.
        together.retain(|block| block.scale != 0.0);
        self.grouped(StackLayout(vec![together]))
    }

    /// The rank of each projection.
    ///
    /// # Errors
    /// If experts' ranks differ at one; the error names them.
    pub(crate) fn equal_ranks(&self, site: &Site, names: &[String]) -> Result<Vec<usize>> {
        let rank = |(projection, blocks): (usize, &Vec<Option<StackBlock>>)| {
            let mut ranks = blocks.iter().enumerate().filter_map(|(e, block)| Some((e, block.as_ref()?.a.len())));
            let Some((first, rank)) = ranks.next() else { return Ok(0) };
            match ranks.find(|(_, other)| *other != rank) {
                None => Ok(rank),
                Some((second, other)) => Err(RouteError::UnequalRanks {
                    module: site.projections[projection].module.clone(),
                    first: (names[first].clone(), rank),
                    second: (names[second].clone(), other),
                }),
            }
        };
        self.blocks.iter().enumerate().map(rank).collect()
    }
}

/// What one choice of experts applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoutingScope {
    /// All projections of a site; an expert's slot in the layouts is its index.
    Site,
    /// One projection; the slot is `projection * experts + expert`.
    Projection,
}

/// The layout of a stack.
struct StackPlan {
    /// Rows of the stacked B, and of each segment of the stacked A.
    ranks: usize,
    /// The segment of the stacked A that each projection has.
    segments: Vec<usize>,
    blocks: Vec<Vec<Option<StackBlock>>>,
}

impl StackPlan {
    fn of(site: &Site, modules: &Modules) -> Self {
        let experts = modules.first().map_or(0, Vec::len);
        let mut ranks = 0;
        let starts: Vec<usize> = (0..experts)
            .map(|expert| {
                let start = ranks;
                ranks +=
                    modules.iter().filter_map(|projection| projection[expert]).map(LowRank::rank).max().unwrap_or(0);
                start
            })
            .collect();
        let segments = segments(modules);
        let block = |projection: usize, columns: &Range<usize>, expert: usize| {
            let module = modules[projection][expert]?;
            let b = starts[expert]..starts[expert] + module.rank();
            let before = segments[projection] * ranks;
            Some(StackBlock {
                a: before + b.start..before + b.end,
                b,
                columns: columns.clone(),
                scale: module.scale() as f32,
            })
        };
        let blocks = site
            .columns()
            .enumerate()
            .map(|(projection, (_, columns))| (0..experts).map(|expert| block(projection, &columns, expert)).collect())
            .collect();
        Self { ranks, segments, blocks }
    }
}

/// The segment of each projection: that of earlier ones if all experts have their A's tied to it, else the next.
fn segments(modules: &Modules) -> Vec<usize> {
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut segments = Vec::new();
    for (projection, experts) in modules.iter().enumerate() {
        let shared = members.iter().position(|members| members.iter().all(|&member| tied(&modules[member], experts)));
        let segment = shared.unwrap_or(members.len());
        if segment == members.len() {
            members.push(Vec::new());
        }
        members[segment].push(projection);
        segments.push(segment);
    }
    segments
}

/// Whether each expert that has both projections has the same A at both.
fn tied(one: &[Option<&LowRank>], other: &[Option<&LowRank>]) -> bool {
    one.iter().zip(other).all(|pair| !matches!(pair, (Some(one), Some(other)) if one.a() != other.a()))
}

/// Writes B, `[width, rank]`, transposed into its place among rows of `output` columns.
fn transpose_into(stacked: &mut [f32], output: usize, block: &StackBlock, b: &[f32]) {
    let rank = block.b.len();
    for (k, row) in block.b.clone().enumerate() {
        let row = &mut stacked[row * output..][block.columns.clone()];
        row.iter_mut().zip(b[k..].iter().step_by(rank)).for_each(|(to, from)| *to = *from);
    }
}
