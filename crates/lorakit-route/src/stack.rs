//! The experts of one site: in their own matrices, and stacked into two.
//!
//! On a CPU, routers that choose few experts of many read each expert's matrices where they lie, so that a large library is
//! prepared without copying it. What mixes all experts, learns or runs on a GPU has them stacked, when it first asks.
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
use lorakit_lora::{ExpertFactors, FactorRows, GroupedLora, Site, SiteRole, StackBlock, StackLayout};
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// Each expert's module for each projection of a site: `modules[projection][expert]`.
pub(crate) type Modules<'a> = Vec<Vec<Option<&'a LowRank>>>;

/// The experts of one site: each in its own matrices, and stacked when that is first asked for.
#[derive(Clone, Debug)]
pub struct Stack {
    role: SiteRole,
    input: usize,
    output: usize,
    device: Device,
    /// Each expert's factors for each projection: `factors[projection][expert]`.
    factors: Vec<Vec<Option<ExpertFactors>>>,
    plan: OnceLock<StackPlan>,
    stacked: OnceLock<Stacked>,
}

/// The stacked matrices.
#[derive(Clone, Debug)]
struct Stacked {
    a: Tensor,
    b: Tensor,
    /// The table of an embedding.
    table: Option<Tensor>,
}

impl Stack {
    /// The experts' modules at a site; none if no expert has any. No value is read.
    pub(crate) fn of(site: &Site, modules: &Modules, device: &Device) -> Option<Self> {
        if modules.iter().flatten().all(Option::is_none) {
            return None;
        }
        let factors = |columns: Range<usize>, module: &Option<&LowRank>| {
            module.map(|module| ExpertFactors {
                a: Arc::new(FactorRows::of(module.a().clone())),
                rows: 0..module.rank(),
                b: Arc::new(FactorRows::transposed(module.b().clone())),
                columns,
                scale: module.scale() as f32,
            })
        };
        let of_projection = |((_, columns), experts): ((_, Range<usize>), &Vec<_>)| {
            experts.iter().map(|module| factors(columns.clone(), module)).collect()
        };
        Some(Self {
            role: site.role,
            input: site.input,
            output: site.output(),
            device: device.clone(),
            factors: site.columns().zip(modules).map(of_projection).collect(),
            plan: OnceLock::new(),
            stacked: OnceLock::new(),
        })
    }

    /// The device of the stacked matrices.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stacked A's, `[segments * ranks, in]`; at an embedding the identity.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn a(&self) -> Result<&Tensor> {
        Ok(&self.stacked()?.a)
    }

    /// At an embedding, the stacked A's by token, `[vocabulary, ranks]`.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn table(&self) -> Result<Option<&Tensor>> {
        match self.role {
            SiteRole::Embedding => Ok(self.stacked()?.table.as_ref()),
            _ => Ok(None),
        }
    }

    /// The stacked, transposed B's, `[ranks, out]`.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn b(&self) -> Result<&Tensor> {
        Ok(&self.stacked()?.b)
    }

    /// The layout, made on first use: it compares the A's of projections.
    fn plan(&self) -> &StackPlan {
        self.plan.get_or_init(|| StackPlan::of(&self.factors))
    }

    /// The stacked matrices, made on first use.
    fn stacked(&self) -> Result<&Stacked> {
        match self.stacked.get() {
            Some(made) => Ok(made),
            None => self.make().map(|made| self.stacked.get_or_init(|| made)),
        }
    }

    fn make(&self) -> Result<Stacked> {
        let plan = self.plan();
        let rows = plan.segments * plan.ranks;
        let mut a = vec![0.0; rows * self.input];
        let mut b = vec![0.0; plan.ranks * self.output];
        for (blocks, factors) in plan.blocks.iter().zip(&self.factors) {
            for (block, factors) in blocks.iter().zip(factors) {
                if let (Some(block), Some(factors)) = (block, factors) {
                    let (own_a, own_b) = (factors.a.matrix().values(), factors.b.matrix().values());
                    a[block.a.start * self.input..block.a.end * self.input].copy_from_slice(&own_a);
                    transpose_into(&mut b, self.output, block, &own_b);
                }
            }
        }
        let a = Tensor::from_vec(a, (rows, self.input), &self.device)?;
        let b = Tensor::from_vec(b, (plan.ranks, self.output), &self.device)?;
        let (a, table) = match self.role {
            SiteRole::Embedding => (Tensor::eye(rows, DType::F32, &self.device)?, Some(a.t()?.contiguous()?)),
            _ => (a, None),
        };
        // `Device::new_cuda` gives each thread a stream of its own: what others launch next needs this one to be done.
        self.device.synchronize()?;
        Ok(Stacked { a, b, table })
    }

    /// For each projection, the experts that change it.
    pub(crate) fn present(&self) -> impl Iterator<Item = impl Iterator<Item = usize>> {
        self.factors.iter().map(|own| own.iter().enumerate().filter_map(|(expert, own)| own.as_ref().map(|_| expert)))
    }

    /// The slots that are chosen from, each in its expert's own matrices. None where products need stacked ones: on a GPU,
    /// at an embedding, and of an expert's projections with A's of their own.
    pub(crate) fn own_slots(&self, scope: RoutingScope) -> Option<Vec<Vec<ExpertFactors>>> {
        if !self.device.is_cpu() || self.role == SiteRole::Embedding {
            return None;
        }
        match scope {
            RoutingScope::Projection => {
                Some(self.factors.iter().flatten().map(|own| own.iter().cloned().collect()).collect())
            }
            RoutingScope::Site if self.plan().segments > 1 => None,
            RoutingScope::Site => {
                let experts = self.factors.first().map_or(0, Vec::len);
                let of = |expert: usize| {
                    let mut own: Vec<ExpertFactors> =
                        self.factors.iter().filter_map(|factors| factors[expert].clone()).collect();
                    // Equal, but each in a place of its own.
                    if let Some(a) = own.first().map(|first| first.a.clone()) {
                        own.iter_mut().for_each(|factors| factors.a = a.clone());
                    }
                    own
                };
                Some((0..experts).map(of).collect())
            }
        }
    }

    /// Number of input features of the site.
    pub(crate) fn input(&self) -> usize {
        self.input
    }

    /// Number of output features of the site.
    pub(crate) fn output(&self) -> usize {
        self.output
    }

    /// For each projection, the experts that change it with their blocks.
    pub(crate) fn projections(&self) -> impl Iterator<Item = impl Iterator<Item = (usize, &StackBlock)>> {
        let blocks = self.plan().blocks.iter();
        blocks.map(|blocks| blocks.iter().enumerate().filter_map(|(e, block)| Some((e, block.as_ref()?))))
    }

    /// The slots that are chosen from: experts of the whole site, or of each projection.
    pub(crate) fn layout(&self, scope: RoutingScope) -> StackLayout {
        let blocks = &self.plan().blocks;
        match scope {
            RoutingScope::Site => {
                let experts = blocks.first().map_or(0, Vec::len);
                let of = |expert: usize| blocks.iter().filter_map(|blocks| blocks[expert].clone()).collect();
                StackLayout((0..experts).map(of).collect())
            }
            RoutingScope::Projection => {
                StackLayout(blocks.iter().flatten().map(|block| block.iter().cloned().collect()).collect())
            }
        }
    }

    /// The stack as a grouped product with these slots.
    pub(crate) fn grouped(&self, layout: StackLayout) -> Result<GroupedLora> {
        Ok(GroupedLora::new(self.a()?.clone(), self.b()?.clone(), Arc::new(layout))?)
    }

    /// One expert alone, in matrices of its own; none if it has nothing at the site.
    pub(crate) fn only(&self, expert: usize) -> Result<Option<GroupedLora>> {
        let projections = self.plan().blocks.iter().zip(&self.factors);
        let blocks: Vec<(&StackBlock, &ExpertFactors)> = projections
            .filter_map(|(blocks, factors)| Some((blocks[expert].as_ref()?, factors[expert].as_ref()?)))
            .collect();
        let rows = || blocks.iter().map(|(block, _)| &block.b);
        let (Some(start), Some(end)) = (rows().map(|b| b.start).min(), rows().map(|b| b.end).max()) else {
            return Ok(None);
        };
        let (mut spans, mut a, mut own) = (Vec::<Range<usize>>::new(), Vec::new(), Vec::new());
        let mut b = vec![0.0; (end - start) * self.output];
        for (block, factors) in blocks {
            if !spans.contains(&block.a) {
                spans.push(block.a.clone());
                a.push(self.rows_of_a(block, factors)?);
            }
            let before: usize = spans.iter().take_while(|span| **span != block.a).map(Range::len).sum();
            let rows = block.b.start - start..block.b.end - start;
            let block = StackBlock { a: before..before + block.a.len(), b: rows, ..block.clone() };
            transpose_into(&mut b, self.output, &block, &factors.b.matrix().values());
            own.push(block);
        }
        let b = Tensor::from_vec(b, (end - start, self.output), &self.device)?;
        Ok(Some(GroupedLora::new(Tensor::cat(&a, 0)?, b, Arc::new(StackLayout(vec![own])))?))
    }

    /// A copy of the rows that a block has in the stacked A.
    fn rows_of_a(&self, block: &StackBlock, factors: &ExpertFactors) -> Result<Tensor> {
        let a = factors.a.matrix();
        Ok(match self.role {
            SiteRole::Embedding => self.a()?.narrow(0, block.a.start, block.a.len())?.force_contiguous()?,
            _ => Tensor::from_vec(a.values().into_owned(), (a.rows(), a.cols()), &self.device)?,
        })
    }

    /// All experts as one, each at its weight for a projection and an expert: adjacent experts of equal scale are joined in
    /// one block, since the entries between them are zero in B.
    pub(crate) fn weighted_sum(&self, weight: impl Fn(usize, usize) -> f32) -> Result<GroupedLora> {
        let mut joined: Vec<StackBlock> = Vec::new();
        for (projection, experts) in self.projections().enumerate() {
            for (expert, block) in experts {
                let scale = block.scale * weight(projection, expert);
                match joined.last_mut().filter(|last| last.columns == block.columns && last.scale == scale) {
                    Some(last) => (last.a.end, last.b.end) = (block.a.end, block.b.end),
                    None => joined.push(StackBlock { scale, ..block.clone() }),
                }
            }
        }
        // Last, so that no block spans an expert that is left out.
        joined.retain(|block| block.scale != 0.0);
        self.grouped(StackLayout(vec![joined]))
    }

    /// The rank of each projection.
    ///
    /// # Errors
    /// If experts' ranks differ at one; the error names them.
    pub(crate) fn equal_ranks(&self, site: &Site, names: &[String]) -> Result<Vec<usize>> {
        let rank = |(projection, own): (usize, &Vec<Option<ExpertFactors>>)| {
            let mut ranks = own.iter().enumerate().filter_map(|(e, own)| Some((e, own.as_ref()?.rank())));
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
        self.factors.iter().enumerate().map(rank).collect()
    }
}

/// What one choice of experts applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoutingScope {
    /// All projections of a site; an expert's slot in the layout is its index.
    Site,
    /// One projection; the slot is `projection * experts + expert`.
    Projection,
}

/// The layout of a stack.
#[derive(Clone, Debug)]
struct StackPlan {
    /// Rows of the stacked B, and of each segment of the stacked A.
    ranks: usize,
    /// Number of segments of the stacked A.
    segments: usize,
    /// Each expert's block for each projection.
    blocks: Vec<Vec<Option<StackBlock>>>,
}

impl StackPlan {
    fn of(factors: &[Vec<Option<ExpertFactors>>]) -> Self {
        let experts = factors.first().map_or(0, Vec::len);
        let mut ranks = 0;
        let starts: Vec<usize> = (0..experts)
            .map(|expert| {
                let start = ranks;
                let own = factors.iter().filter_map(|projection| projection[expert].as_ref());
                ranks += own.map(ExpertFactors::rank).max().unwrap_or(0);
                start
            })
            .collect();
        let segments = segments(factors);
        let block = |segment: usize, start: usize, own: &Option<ExpertFactors>| {
            let own = own.as_ref()?;
            let b = start..start + own.rank();
            let a = segment * ranks + b.start..segment * ranks + b.end;
            Some(StackBlock { a, b, columns: own.columns.clone(), scale: own.scale })
        };
        let of_projection = |(own, segment): (&Vec<_>, &usize)| {
            own.iter().zip(&starts).map(|(own, start)| block(*segment, *start, own)).collect()
        };
        let blocks = factors.iter().zip(&segments).map(of_projection).collect();
        Self { ranks, segments: segments.iter().max().map_or(0, |last| last + 1), blocks }
    }
}

/// The segment of each projection: that of earlier ones if all experts have their A's tied to it, else the next.
fn segments(factors: &[Vec<Option<ExpertFactors>>]) -> Vec<usize> {
    let mut members: Vec<Vec<usize>> = Vec::new();
    let mut segments = Vec::new();
    for (projection, experts) in factors.iter().enumerate() {
        let shared = members.iter().position(|members| members.iter().all(|&member| tied(&factors[member], experts)));
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
fn tied(one: &[Option<ExpertFactors>], other: &[Option<ExpertFactors>]) -> bool {
    let differ = |one: &ExpertFactors, other: &ExpertFactors| one.a.matrix() != other.a.matrix();
    one.iter().zip(other).all(|pair| !matches!(pair, (Some(one), Some(other)) if differ(one, other)))
}

/// Writes B, `[width, rank]`, transposed into its place among rows of `output` columns.
fn transpose_into(stacked: &mut [f32], output: usize, block: &StackBlock, b: &[f32]) {
    let rank = block.b.len();
    for (k, row) in block.b.clone().enumerate() {
        let row = &mut stacked[row * output..][block.columns.clone()];
        row.iter_mut().zip(b[k..].iter().step_by(rank)).for_each(|(to, from)| *to = *from);
    }
}
