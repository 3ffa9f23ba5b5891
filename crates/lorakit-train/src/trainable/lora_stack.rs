//! The adapters that a pass trains: one A and one B variable per site, with a segment per expert.

use crate::optim::parameter::Parameter;
use crate::train_config::TrainConfig;
use crate::trainable::dropout::Dropout;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor, TensorId, Var};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_format::rng::Key;
use lorakit_lora::kernels::op::Op;
use lorakit_lora::{
    FrozenLinear, GradientSink, GroupedLora, LoraLinear, Outputs, Patch, Patches, SequenceBatch, Site, SparseGradients,
    StackBlock, StackLayout, TokenGroup,
};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// The adapters of several experts over one base, stacked site by site.
pub struct LoraStack {
    pub(crate) rank: usize,
    pub(crate) scale: f64,
    /// One entry per site of the base; none where no projection is adapted.
    pub(crate) sites: Vec<Option<SiteStack>>,
}

/// The adapters at one site: A's by rows, `[ranks of A, in]`, B's, transposed, by rows, `[ranks of B, out]`.
pub(crate) struct SiteStack {
    pub(crate) key: String,
    pub(crate) a: Var,
    pub(crate) b: Var,
    pub(crate) layouts: Arc<StackLayout>,
    /// The modules of the adapted projections, in the order of their blocks.
    pub(crate) modules: Vec<String>,
}

/// A uniform draw of A as PEFT starts from: U(-1/sqrt(in), 1/sqrt(in)) (Kaiming with a = sqrt 5), `[rank, in]`.
///
/// It depends on the seed and the module alone, never on the expert, so that all experts of a library start from the
/// same A: clustering by parameters, averaging and separate mixing depend on it. Each rank is a stream of its own, so
/// that a smaller rank's A is the beginning of a larger one's.
pub fn initial_a(seed: u64, module: &str, rank: usize, input: usize) -> Vec<f32> {
    let bound = 1.0 / (input as f32).sqrt();
    let row = |r| {
        let mut stream = Key::new(seed, "initial A").text(module).number(r as u64).stream();
        (0..input).map(move |_| (2.0 * stream.uniform() - 1.0) * bound).collect::<Vec<f32>>()
    };
    (0..rank).flat_map(row).collect()
}

impl LoraStack {
    /// Adapters for as many experts as there are `starts`: from the given adapter where there is one, else from the
    /// library's common A with B zero.
    pub fn new(
        sites: &[Site],
        device: &Device,
        starts: &[Option<Adapter>],
        settings: &TrainConfig,
        seed: u64,
    ) -> Result<Self> {
        let targets = settings.targets()?;
        let mut stacks = Vec::new();
        for site in sites {
            let mut adapted = Vec::new();
            for (projection, columns) in site.columns() {
                if targets.matches(&projection.module)? {
                    adapted.push((projection.module.clone(), columns));
                }
            }
            let stack = if adapted.is_empty() {
                None
            } else {
                Some(SiteStack::new(site, adapted, device, starts, settings, seed)?)
            };
            stacks.push(stack);
        }
        ensure_all_targeted(&stacks, starts, settings)?;
        let modules = || sites.iter().flat_map(|s| &s.projections).map(|p| p.name().to_string());
        ensure!(
            stacks.iter().any(Option::is_some),
            "setting target_modules = '{}' matches no module of the base; it has {}",
            settings.target_modules,
            BTreeSet::from_iter(modules()).into_iter().collect::<Vec<_>>().join(", ")
        );
        Ok(Self { rank: settings.rank, scale: settings.scale(), sites: stacks })
    }

    /// The variables with the experts that their rows belong to.
    pub fn parameters(&self) -> Result<Vec<Parameter>> {
        let mut parameters = Vec::new();
        for stack in self.sites.iter().flatten() {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for (expert, blocks) in stack.layouts.0.iter().enumerate() {
                let span = |range: fn(&StackBlock) -> Range<usize>| {
                    let ranges = || blocks.iter().map(range);
                    ranges().map(|r| r.start).min().unwrap_or(0)..ranges().map(|r| r.end).max().unwrap_or(0)
                };
                a.push((expert, span(|block| block.a.clone())));
                b.push((expert, span(|block| block.b.clone())));
            }
            parameters.push(Parameter::new(format!("{}.A", stack.key), stack.a.clone(), a)?);
            parameters.push(Parameter::new(format!("{}.B", stack.key), stack.b.clone(), b)?);
        }
        Ok(parameters)
    }

    /// The patches of a batch whose rows name their experts.
    pub fn patches(&self, dropout: Option<&Dropout>) -> Result<Patches> {
        let patch = |(site, stack): (usize, &Option<SiteStack>)| -> Result<Option<Arc<dyn Patch>>> {
            let Some(stack) = stack else { return Ok(None) };
            Ok(Some(Arc::new(stack.trained(site, dropout, None)?)))
        };
        Ok(Patches::new(self.sites.iter().enumerate().map(patch).collect::<Result<_>>()?))
    }

    /// The same for a batch that is differentiated on a CPU, with what collects the gradients of its experts' rows.
    pub fn collected(&self, dropout: Option<&Dropout>) -> Result<(Patches, LoraGradients)> {
        let mut collected = Vec::new();
        let mut patch = |(site, stack): (usize, &Option<SiteStack>)| -> Result<Option<Arc<dyn Patch>>> {
            let Some(stack) = stack else { return Ok(None) };
            let collector = GradientSink::default();
            collected.push(([&stack.a, &stack.b].map(|v| v.as_tensor().id()), collector.clone()));
            Ok(Some(Arc::new(stack.trained(site, dropout, Some(collector))?)))
        };
        let patches = self.sites.iter().enumerate().map(&mut patch).collect::<Result<_>>()?;
        Ok((Patches::new(patches), LoraGradients(collected)))
    }

    /// One expert's A's and B's, site by site, as they stand.
    pub fn values(&self, expert: usize) -> Result<Vec<Vec<f32>>> {
        let mut values = Vec::new();
        for stack in self.sites.iter().flatten() {
            for block in &stack.layouts.0[expert] {
                values.push(rows(stack.a.as_tensor(), &block.a)?);
                values.push(transposed_columns(stack.b.as_tensor(), block)?);
            }
        }
        Ok(values)
    }

    /// An expert's adapter from what [`LoraStack::values`] gave.
    pub fn adapter(&self, expert: usize, values: &[Vec<f32>]) -> Result<Adapter> {
        let mut values = values.iter();
        let mut modules = BTreeMap::new();
        for stack in self.sites.iter().flatten() {
            for (module, block) in stack.modules.iter().zip(&stack.layouts.0[expert]) {
                let mut next = || values.next().cloned().context("an expert's values end early");
                let (a, b) = (next()?, next()?);
                let input = stack.a.dim(1)?;
                let pair = LowRank::new(
                    Matrix::new(self.rank, input, a)?,
                    Matrix::new(block.columns.len(), self.rank, b)?,
                    self.scale,
                )?;
                modules.insert(module.clone(), pair);
            }
        }
        Ok(Adapter::new(modules))
    }
}

/// What a batch's backward leaves for the variables of a stack.
pub struct LoraGradients(Vec<([TensorId; 2], GradientSink)>);

impl LoraGradients {
    /// The gradients that are here now, each with its variable.
    pub fn take(&self) -> impl Iterator<Item = (TensorId, SparseGradients)> {
        self.0.iter().flat_map(|(variables, collector)| variables.iter().copied().zip(collector.take()))
    }
}

impl SiteStack {
    fn trained(&self, site: usize, dropout: Option<&Dropout>, collector: Option<GradientSink>) -> Result<LoraPatch> {
        let grouped = GroupedLora::new(self.a.as_tensor().clone(), self.b.as_tensor().clone(), self.layouts.clone())?;
        Ok(LoraPatch { grouped, site, dropout: dropout.cloned(), collector })
    }

    fn new(
        site: &Site,
        adapted: Vec<(String, Range<usize>)>,
        device: &Device,
        starts: &[Option<Adapter>],
        settings: &TrainConfig,
        seed: u64,
    ) -> Result<Self> {
        let tied = settings.tie_qkv && site.name == "qkv";
        let (rank, output) = (settings.rank, site.output());
        let shared = if tied { 1 } else { adapted.len() };
        let mut a = Vec::with_capacity(starts.len() * shared * rank * site.input);
        let mut b = vec![0.0; starts.len() * rank * output];
        let mut layouts = StackLayout::default();
        for (expert, start) in starts.iter().enumerate() {
            let first_a = a.len() / site.input;
            let mut blocks = Vec::new();
            for (i, (module, columns)) in adapted.iter().enumerate() {
                let block = StackBlock {
                    a: first_a + if tied { 0 } else { i * rank }..first_a + if tied { rank } else { (i + 1) * rank },
                    b: expert * rank..(expert + 1) * rank,
                    columns: columns.clone(),
                    scale: settings.scale() as f32,
                };
                let given = start.as_ref().map(|adapter| given_pair(adapter, module, settings)).transpose()?;
                if i == 0 || !tied {
                    match given {
                        Some(pair) => a.extend_from_slice(&pair.a().values()),
                        None => a.extend(initial_a(seed, if tied { &adapted[0].0 } else { module }, rank, site.input)),
                    }
                } else if let Some(pair) = given {
                    ensure!(
                        pair.a().values()[..] == a[first_a * site.input..],
                        "module '{module}': tie_qkv is set, and its A differs from that of '{}'",
                        adapted[0].0
                    );
                }
                if let Some(pair) = given {
                    write_transposed(&pair.b().values(), &mut b, output, &block);
                }
                blocks.push(block);
            }
            layouts.0.push(blocks);
        }
        let ranks_a = a.len() / site.input;
        Ok(Self {
            key: site.key(),
            a: Var::from_tensor(&Tensor::from_vec(a, (ranks_a, site.input), device)?)?,
            b: Var::from_tensor(&Tensor::from_vec(b, (starts.len() * rank, output), device)?)?,
            layouts: Arc::new(layouts),
            modules: adapted.into_iter().map(|(module, _)| module).collect(),
        })
    }
}

/// Refuses a start of which a part would be left out, and what that part does would be lost.
fn ensure_all_targeted(stacks: &[Option<SiteStack>], starts: &[Option<Adapter>], settings: &TrainConfig) -> Result<()> {
    let targeted: BTreeSet<&String> = stacks.iter().flatten().flat_map(|stack| &stack.modules).collect();
    let mut modules = starts.iter().flatten().flat_map(|start| start.modules().keys());
    if let Some(module) = modules.find(|module| !targeted.contains(module)) {
        bail!(
            "an adapter to start from has the module '{module}', which target_modules = '{}' leaves out: what it does \
             there would be lost",
            settings.target_modules
        );
    }
    Ok(())
}

/// The pair of a module that training starts from, whose form the settings must agree with.
fn given_pair<'a>(adapter: &'a Adapter, module: &str, settings: &TrainConfig) -> Result<&'a LowRank> {
    let pair = adapter.modules().get(module).with_context(|| {
        format!(
            "the adapter to start from has no module '{module}', which target_modules = '{}' asks for",
            settings.target_modules
        )
    })?;
    ensure!(
        pair.rank() == settings.rank && (pair.scale() - settings.scale()).abs() < 1e-9,
        "module '{module}' of the adapter to start from has rank {} and scale {}; the settings have rank {} and alpha {}, which is scale {}",
        pair.rank(),
        pair.scale(),
        settings.rank,
        settings.alpha,
        settings.scale()
    );
    Ok(pair)
}

pub(crate) fn rows(tensor: &Tensor, range: &Range<usize>) -> Result<Vec<f32>> {
    // A part of its own, since from a card a view comes with all that it is a part of.
    Ok(tensor.narrow(0, range.start, range.len())?.force_contiguous()?.flatten_all()?.to_vec1()?)
}

/// A block's B, `[out, rank]`, from the stacked and transposed `[ranks, out]`.
pub(crate) fn transposed_columns(stacked: &Tensor, block: &StackBlock) -> Result<Vec<f32>> {
    let part = stacked.narrow(0, block.b.start, block.b.len())?.narrow(1, block.columns.start, block.columns.len())?;
    Ok(part.t()?.contiguous()?.flatten_all()?.to_vec1()?)
}

fn write_transposed(b: &[f32], stacked: &mut [f32], output: usize, block: &StackBlock) {
    let rank = block.b.len();
    for (column, row) in block.columns.clone().zip(b.chunks_exact(rank)) {
        for (r, value) in row.iter().enumerate() {
            stacked[(block.b.start + r) * output + column] = *value;
        }
    }
}

/// The tenant of a site in training: dropout, then each row's own expert.
struct LoraPatch {
    grouped: GroupedLora,
    site: usize,
    dropout: Option<Dropout>,
    /// Where gradients are left, of what is differentiated beside candle's graph.
    collector: Option<GradientSink>,
}

impl Patch for LoraPatch {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let groups = TokenGroup::of_sequences(rows);
        match &self.dropout {
            Some(dropout) => self.grouped.add(&dropout.apply(x, rows, self.site)?, groups, out),
            None => self.grouped.add(x, groups, out),
        }
    }

    fn site_op(
        &self,
        frozen: Arc<dyn FrozenLinear>,
        rows: &SequenceBatch,
    ) -> candle_core::Result<Option<Box<dyn Op<1>>>> {
        let Some(collector) = &self.collector else { return Ok(None) };
        let input = frozen.input();
        let site = LoraLinear::new(frozen, self.grouped.clone(), TokenGroup::of_sequences(rows), collector.clone())?;
        Ok(Some(Box::new(match &self.dropout {
            Some(dropout) => site.masked(dropout.mask(rows, input, self.site)?),
            None => site,
        })))
    }
}
