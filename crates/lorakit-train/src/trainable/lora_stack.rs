//! The LoRA adapters of several experts as variables: one A and one B per site, with a segment per expert.

use crate::error::{Result, TrainError};
use crate::optim::parameter::Parameter;
use crate::train_config::TrainConfig;
use crate::trainable::lora_init::{init_pair, initial_a, ties_a};
use candle_core::{Device, Tensor, Var};
use lorakit_adapter::{Adapter, AdapterMetadata, LowRank, Matrix};
use lorakit_lora::{Site, StackBlock, StackLayout};
use lorakit_model::Base;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// The adapters of several experts over one base, stacked site by site.
pub struct LoraStack {
    pub(crate) rank: usize,
    pub(crate) scale: f64,
    /// Whether the written config names the scale as rsLoRA does.
    pub(crate) rslora: bool,
    /// One entry per site of the base; None if no projection of it is adapted.
    pub(crate) sites: Vec<Option<SiteStack>>,
}

/// The adapters of one site: A stacked by rows, `[ranks of A, in]`, and B transposed and stacked by rows,
/// `[ranks of B, out]`.
pub(crate) struct SiteStack {
    pub(crate) key: String,
    pub(crate) a: Var,
    pub(crate) b: Var,
    pub(crate) layout: Arc<StackLayout>,
    /// The modules of the adapted projections, in the order of their blocks.
    pub(crate) modules: Vec<String>,
}

/// How the adapters of a site are initialized.
struct SiteInit<'a> {
    site: &'a Site,
    /// The modules of the adapted projections with their output columns.
    adapted: Vec<(String, Range<usize>)>,
    inits: &'a [Option<Adapter>],
    config: &'a TrainConfig,
    seed: u64,
}

/// The values of a site's stack while it is filled.
struct SiteValues {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl LoraStack {
    /// One adapter for each of `inits`: the given one, or the A that all experts of a library share with B zero.
    ///
    /// # Errors
    /// If `target_modules` matches no module, or a given adapter has other modules, ranks or scales than the config.
    pub fn new(base: &Base, inits: &[Option<Adapter>], config: &TrainConfig, seed: u64) -> Result<Self> {
        let targets = config.targets(base)?;
        let mut stacks = Vec::new();
        for site in base.sites() {
            let mut adapted = Vec::new();
            for (projection, columns) in site.columns() {
                if targets.matches(&projection.module)? {
                    adapted.push((projection.module.clone(), columns));
                }
            }
            let init = SiteInit { site, adapted, inits, config, seed };
            stacks.push(if init.adapted.is_empty() { None } else { Some(SiteStack::new(init, base.device())?) });
        }
        check_all_targeted(&stacks, inits, config)?;
        if stacks.iter().all(Option::is_none) {
            let modules = base.sites().iter().flat_map(|s| &s.projections).map(|p| p.name().to_string());
            return Err(TrainError::NoTargetModule {
                target_modules: config.target_modules.clone(),
                modules: BTreeSet::from_iter(modules).into_iter().collect(),
            });
        }
        Ok(Self { rank: config.rank, scale: config.scale(), rslora: config.use_rslora, sites: stacks })
    }

    /// The variables, each with the rows that belong to each expert.
    pub fn parameters(&self) -> Result<Vec<Parameter>> {
        let mut parameters = Vec::new();
        for stack in self.sites.iter().flatten() {
            let (layout, experts) = (&stack.layout, 0..stack.layout.0.len());
            let a = experts.clone().map(|expert| (expert, layout.a_rows(expert))).collect();
            let b = experts.map(|expert| (expert, layout.b_rows(expert))).collect();
            parameters.push(Parameter::new(format!("{}.A", stack.key), stack.a.clone(), a)?);
            parameters.push(Parameter::new(format!("{}.B", stack.key), stack.b.clone(), b)?);
        }
        Ok(parameters)
    }

    /// The current values of one expert: A and B of each module, site by site.
    pub fn values(&self, expert: usize) -> Result<Vec<Vec<f32>>> {
        let mut values = Vec::new();
        for stack in self.sites.iter().flatten() {
            for block in &stack.layout.0[expert] {
                values.push(rows(stack.a.as_tensor(), &block.a)?);
                values.push(transposed_columns(stack.b.as_tensor(), block)?);
            }
        }
        Ok(values)
    }

    /// An expert's adapter with the values that [`LoraStack::values`] returned.
    pub fn adapter(&self, expert: usize, values: &[Vec<f32>]) -> Result<Adapter> {
        let mut values = values.iter();
        let mut modules = BTreeMap::new();
        for stack in self.sites.iter().flatten() {
            for (module, block) in stack.modules.iter().zip(&stack.layout.0[expert]) {
                let mut next = || values.next().cloned().ok_or(TrainError::MissingValues { index: expert });
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
        let metadata = AdapterMetadata { rslora: self.rslora, ..AdapterMetadata::default() };
        Ok(Adapter::new(modules).with_metadata(metadata))
    }
}

impl SiteStack {
    fn new(init: SiteInit, device: &Device) -> Result<Self> {
        let (rank, input, output) = (init.config.rank, init.site.input, init.site.output());
        let experts = init.inits.len();
        let mut values = SiteValues { a: Vec::new(), b: vec![0.0; experts * rank * output] };
        let mut layout = StackLayout::default();
        for expert in 0..experts {
            layout.0.push(init.expert_blocks(expert, &mut values)?);
        }
        let ranks_a = values.a.len() / input;
        Ok(Self {
            key: init.site.key(),
            a: Var::from_tensor(&Tensor::from_vec(values.a, (ranks_a, input), device)?)?,
            b: Var::from_tensor(&Tensor::from_vec(values.b, (experts * rank, output), device)?)?,
            layout: Arc::new(layout),
            modules: init.adapted.into_iter().map(|(module, _)| module).collect(),
        })
    }
}

impl SiteInit<'_> {
    /// Appends the values of one expert, and returns where they are, module by module.
    fn expert_blocks(&self, expert: usize, values: &mut SiteValues) -> Result<Vec<StackBlock>> {
        let (rank, input, tied) = (self.config.rank, self.site.input, ties_a(self.config, self.site));
        let first_a = values.a.len() / input;
        let mut blocks = Vec::new();
        for (i, (module, columns)) in self.adapted.iter().enumerate() {
            let start_a = first_a + if tied { 0 } else { i * rank };
            let block = StackBlock {
                a: start_a..start_a + rank,
                b: expert * rank..(expert + 1) * rank,
                columns: columns.clone(),
                scale: self.config.scale() as f32,
            };
            let init = self.inits[expert].as_ref();
            let given = init.map(|adapter| init_pair(adapter, module, self.config)).transpose()?;
            let drawn_as = &self.adapted[0].0;
            if i == 0 || !tied {
                match given {
                    Some(pair) => values.a.extend_from_slice(&pair.a().values()),
                    None => values.a.extend(initial_a(self.seed, if tied { drawn_as } else { module }, rank, input)),
                }
            } else if let Some(pair) = given
                && pair.a().values()[..] != values.a[first_a * input..]
            {
                return Err(TrainError::UntiedInit { module: module.clone(), first: drawn_as.clone() });
            }
            if let Some(pair) = given {
                write_transposed(&pair.b().values(), &mut values.b, self.site.output(), &block);
            }
            blocks.push(block);
        }
        Ok(blocks)
    }
}

/// Refuses a starting adapter of which some modules would be dropped.
fn check_all_targeted(stacks: &[Option<SiteStack>], inits: &[Option<Adapter>], config: &TrainConfig) -> Result<()> {
    let targeted: BTreeSet<&String> = stacks.iter().flatten().flat_map(|stack| &stack.modules).collect();
    let mut modules = inits.iter().flatten().flat_map(|init| init.modules().keys());
    match modules.find(|module| !targeted.contains(module)) {
        Some(module) => {
            Err(TrainError::InitModuleDropped { module: module.clone(), target_modules: config.target_modules.clone() })
        }
        None => Ok(()),
    }
}

/// The values of some rows.
pub(crate) fn rows(tensor: &Tensor, range: &Range<usize>) -> Result<Vec<f32>> {
    // Made contiguous first, since a view is copied from a GPU with all of its storage.
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
