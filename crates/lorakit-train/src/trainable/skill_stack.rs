//! Poly and MHR: a few skills, trained together on many tasks, and how much of each skill each task takes.
//!
//! Poly (Ponti et al. 2022, <https://arxiv.org/abs/2202.13914>) has K adapters, the skills, and for each task t and
//! adapted site a row of K logits Z. The task's own adapter there is
//!
//! `A_t = sum_k w_tk A_k`, `B_t = sum_k w_tk B_k`, `w_tk = σ(Z_tk) / (sum_j σ(Z_tj) + 1e-8)`
//!
//! so that A's and B's are mixed separately. MHR (Caccia et al. 2022, <https://arxiv.org/abs/2211.03831>) parts A's
//! input and each projection's output into S blocks of equal width, each with K logits of its own; Poly is S = 1.
//! Skills and logits are trained together, the logits from U(-0.001, 0.001) and at a rate of their own, as in the code of
//! <https://arxiv.org/abs/2405.11157>. Each skill starts from an A of its own: from a common one all would learn the same.

use crate::optim::parameter::Parameter;
use crate::train_config::TrainConfig;
use crate::trainable::dropout::Dropout;
use crate::trainable::lora_stack::{LoraStack, SiteStack, initial_a, rows, transposed_columns};
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, Var};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use lorakit_format::rng::Key;
use lorakit_lora::{
    GroupedLora, Outputs, Patch, Patches, SequenceBatch, Site, StackBlock, StackLayout, TokenGroup, TokenSelection,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// How many skills there are, and in how many blocks they are mixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkillDims {
    /// K.
    pub count: usize,
    /// S; 1 for Poly.
    pub splits: usize,
}

/// The task, by number, of each row of a job.
#[derive(Clone, Debug, Default)]
pub struct RowTasks {
    /// Of the rows for training.
    pub train: Vec<usize>,
    /// Of those for validation.
    pub validation: Vec<usize>,
}

/// Skills with the routing of several tasks, as variables.
pub struct SkillStack {
    form: SkillDims,
    stack: LoraStack,
    /// One entry per site of the base, `[tasks, splits * skills]`; none where no projection is adapted.
    logits: Vec<Option<Var>>,
}

/// Added to the sum of a row's sigmoids.
const EPSILON: f64 = 1e-8;

/// The bound of the logits' first values.
const SPREAD: f32 = 1e-3;

/// Adapters for skills to start from: an A for each, drawn from the seed, the module and the skill's number; B zero.
pub fn init_skills(sites: &[Site], settings: &TrainConfig, count: usize, seed: u64) -> Result<Vec<Adapter>> {
    let targets = settings.targets()?;
    let mut skills = vec![BTreeMap::new(); count];
    for site in sites {
        let mut first: Option<&str> = None;
        for projection in &site.projections {
            if !targets.matches(&projection.module)? {
                continue;
            }
            let drawn_as = *first.get_or_insert(&projection.module);
            let tied = settings.tie_qkv && site.name == "qkv";
            let drawn_as = if tied { drawn_as } else { &projection.module };
            // Ranks of one A are streams of their own: the skills share out those of one large A.
            let a = initial_a(seed, drawn_as, count * settings.rank, site.input);
            for (skill, a) in skills.iter_mut().zip(a.chunks_exact(settings.rank * site.input)) {
                let a = Matrix::new(settings.rank, site.input, a.to_vec())?;
                let b = Matrix::new(projection.width, settings.rank, vec![0.0; projection.width * settings.rank])?;
                skill.insert(projection.module.clone(), LowRank::new(a, b, settings.scale())?);
            }
        }
    }
    Ok(skills.into_iter().map(Adapter::new).collect())
}

/// The settings by which these adapters would have been made: rank, alpha and modules.
///
/// # Errors
/// Where there is none, or they have modules of different ranks or scales: they are trained, or mixed as A's and B's,
/// which takes one of each.
pub fn config_for_adapters(adapters: &[Adapter], settings: &TrainConfig) -> Result<TrainConfig> {
    let first = adapters.first().context("there are no adapters")?;
    let (_, pair) = first.modules().first_key_value().context("the first adapter has no modules")?;
    let (rank, scale) = (pair.rank(), pair.scale());
    for (module, other) in adapters.iter().flat_map(Adapter::modules) {
        ensure!(
            other.rank() == rank && (other.scale() - scale).abs() < 1e-9,
            "module '{module}' has rank {} and scale {}, others have rank {rank} and scale {scale}, and one of each is \
             needed: `lorakit merge --method svd:rank=N` brings an adapter to a rank",
            other.rank(),
            other.scale()
        );
    }
    let target_modules = first.modules().keys().cloned().collect::<Vec<_>>().join(",");
    Ok(TrainConfig { rank, alpha: scale * rank as f64, target_modules, tie_qkv: false, ..settings.clone() })
}

impl SkillStack {
    /// Skills that start from `skills`, all of the rank, scale and modules that the settings name, and for each of
    /// `tasks` logits near zero.
    ///
    /// # Errors
    /// Where a skill has another form, or a width at an adapted site cannot be parted in `splits`.
    pub fn new(
        sites: &[Site],
        device: &Device,
        skills: Vec<Adapter>,
        splits: usize,
        tasks: &[String],
        settings: &TrainConfig,
        seed: u64,
    ) -> Result<Self> {
        ensure!(!skills.is_empty() && splits > 0 && !tasks.is_empty(), "no skills, no splits or no tasks");
        let form = SkillDims { count: skills.len(), splits };
        let starts: Vec<Option<Adapter>> = skills.into_iter().map(Some).collect();
        let stack = LoraStack::new(sites, device, &starts, settings, seed)?;
        let mut logits = Vec::with_capacity(sites.len());
        for (site, adapted) in sites.iter().zip(&stack.sites) {
            let Some(adapted) = adapted else {
                logits.push(None);
                continue;
            };
            let widths = adapted.layouts.0[0].iter().map(|block| block.columns.len());
            for width in widths.chain([site.input]) {
                ensure!(
                    width % splits == 0,
                    "site {}: a width of {width} cannot be parted in {splits}; expected splits that divide it",
                    site.key()
                );
            }
            let columns = form.count * splits;
            let row = |task: &String| {
                let mut stream = Key::new(seed, "routing").text(&site.key()).text(task).stream();
                (0..columns).map(move |_| SPREAD * (2.0 * stream.uniform() - 1.0)).collect::<Vec<_>>()
            };
            let values: Vec<f32> = tasks.iter().flat_map(row).collect();
            logits.push(Some(Var::from_tensor(&Tensor::from_vec(values, (tasks.len(), columns), device)?)?));
        }
        Ok(Self { form, stack, logits })
    }

    /// How many skills and splits.
    pub fn form(&self) -> SkillDims {
        self.form
    }

    fn sites(&self) -> impl Iterator<Item = (usize, &SiteStack, &Var)> {
        let sites = self.stack.sites.iter().zip(&self.logits).enumerate();
        sites.filter_map(|(index, (site, logits))| Some((index, site.as_ref()?, logits.as_ref()?)))
    }

    /// The skills' variables by name.
    pub fn skill_variables(&self) -> Vec<(String, Var)> {
        let of = |(_, site, _): (usize, &SiteStack, &Var)| {
            [(format!("{}.A", site.key), site.a.clone()), (format!("{}.B", site.key), site.b.clone())]
        };
        self.sites().flat_map(of).collect()
    }

    /// The logits' variables by name, `[tasks, splits * skills]`.
    pub fn routing_variables(&self) -> Vec<(String, Var)> {
        self.sites().map(|(_, site, logits)| (format!("{}.routing", site.key), logits.clone())).collect()
    }

    /// All variables, the logits at their own rate.
    pub(crate) fn parameters(&self, settings: &TrainConfig) -> Result<Vec<Parameter>> {
        let whole = |name: String, variable: Var| {
            let all = vec![(0, 0..variable.dim(0)?)];
            Parameter::new(name, variable, all)
        };
        let mut parameters = Vec::new();
        for (name, variable) in self.skill_variables() {
            parameters.push(whole(name, variable)?);
        }
        let factor = settings.routing_learning_rate / settings.learning_rate;
        for (name, variable) in self.routing_variables() {
            parameters.push(whole(name, variable)?.at_rate(factor));
        }
        Ok(parameters)
    }

    /// The patches of a batch whose rows name their tasks, by number, where others have their experts.
    pub fn patches(&self, dropout: Option<&Dropout>) -> Patches {
        let mut by_site: Vec<Option<Arc<dyn Patch>>> = vec![None; self.stack.sites.len()];
        for (index, site, logits) in self.sites() {
            by_site[index] = Some(Arc::new(SkillPatch {
                site: index,
                form: self.form,
                a: site.a.as_tensor().clone(),
                b: site.b.as_tensor().clone(),
                logits: logits.as_tensor().clone(),
                blocks: site.layouts.0[0].clone(),
                dropout: dropout.cloned(),
            }));
        }
        Patches::new(by_site)
    }

    /// A skill as it stands.
    pub fn skill(&self, skill: usize) -> Result<Adapter> {
        self.stack.adapter(skill, &self.stack.values(skill)?)
    }

    /// The logits as they stand, by site: `[tasks, splits * skills]`.
    pub fn logits(&self) -> Result<BTreeMap<String, Matrix>> {
        let matrix = |logits: &Var| {
            let (tasks, columns) = logits.dims2()?;
            Matrix::new(tasks, columns, logits.flatten_all()?.to_vec1()?)
        };
        self.sites().map(|(_, site, logits)| Ok((site.key.clone(), matrix(logits)?))).collect()
    }

    /// Puts other logits in the place of these.
    ///
    /// # Errors
    /// Where a site has none, or of another shape.
    pub fn set_logits(&self, given: &BTreeMap<String, Matrix>) -> Result<()> {
        for (_, site, logits) in self.sites() {
            let matrix = given.get(&site.key).with_context(|| format!("no routing for site {}", site.key))?;
            let (expected, found) = (logits.dims2()?, (matrix.rows(), matrix.cols()));
            ensure!(found == expected, "the routing of site {} is {found:?}; expected {expected:?}", site.key);
            logits.set(&Tensor::from_slice(&matrix.values(), found, logits.device())?)?;
        }
        Ok(())
    }

    /// Sets all logits to zero: every skill has the same weight.
    pub fn set_even(&self) -> Result<()> {
        self.sites().try_for_each(|(_, _, logits)| Ok(logits.set(&logits.zeros_like()?)?))
    }

    /// The adapter of a task: what its routing makes of the skills, exactly.
    pub fn adapter_of(&self, task: usize) -> Result<Adapter> {
        self.adapter_by(|logits| weights(&logits.narrow(0, task, 1)?, self.form))
    }

    /// The adapter of the mean weights of all tasks, for one that none of them is.
    pub fn mean_adapter(&self) -> Result<Adapter> {
        self.adapter_by(|logits| weights(logits, self.form)?.mean_keepdim(0))
    }

    /// The adapter that weights, `[1, splits, skills]`, make of the skills.
    fn adapter_by(&self, weights: impl Fn(&Tensor) -> candle_core::Result<Tensor>) -> Result<Adapter> {
        let mut modules = BTreeMap::new();
        for (_, site, logits) in self.sites() {
            let blocks = &site.layouts.0[0];
            let (a, b) = mixed(&weights(&logits.detach())?, site.a.as_tensor(), site.b.as_tensor(), blocks)?;
            for (module, block) in site.modules.iter().zip(blocks) {
                let pair = LowRank::new(
                    Matrix::new(self.stack.rank, a.dim(1)?, rows(&a, &block.a)?)?,
                    Matrix::new(block.columns.len(), self.stack.rank, transposed_columns(&b, block)?)?,
                    self.stack.scale,
                )?;
                modules.insert(module.clone(), pair);
            }
        }
        Ok(Adapter::new(modules))
    }
}

/// The weights that rows of logits, `[n, splits * skills]`, stand for: `[n, splits, skills]`.
fn weights(logits: &Tensor, form: SkillDims) -> candle_core::Result<Tensor> {
    let logits = logits.reshape((logits.dim(0)?, form.splits, form.count))?;
    // By the tangent, which overflows nowhere: σ(z) = (1 + tanh(z / 2)) / 2.
    let sigmoid = (((logits * 0.5)?.tanh()? + 1.0)? * 0.5)?;
    sigmoid.broadcast_div(&(sigmoid.sum_keepdim(2)? + EPSILON)?)
}

/// The A's, `[n * ranks of A, in]`, and B's, `[n * rank, out]`, that weights `[n, splits, skills]` make of stacked skills,
/// of which `blocks` are the first's.
fn mixed(weights: &Tensor, a: &Tensor, b: &Tensor, blocks: &[StackBlock]) -> candle_core::Result<(Tensor, Tensor)> {
    let a = mix(weights, a)?;
    if weights.dim(1)? == 1 {
        return Ok((a, mix(weights, b)?));
    }
    // Each projection's output is parted for itself; what no projection fills stays zero.
    let (mut parts, mut end) = (Vec::new(), 0);
    let rows = weights.dim(0)? * b.dim(0)? / weights.dim(2)?;
    let zeros = |width| Tensor::zeros((rows, width), b.dtype(), b.device());
    for block in blocks {
        let Range { start, end: next } = block.columns.clone();
        if start > end {
            parts.push(zeros(start - end)?);
        }
        parts.push(mix(weights, &b.narrow(1, start, next - start)?.contiguous()?)?);
        end = next;
    }
    if end < b.dim(1)? {
        parts.push(zeros(b.dim(1)? - end)?);
    }
    Ok((a, Tensor::cat(&parts, 1)?))
}

/// `sum_k w[g, s, k] m[k, r, s, :]`: stacked skills, `[skills * r, d]`, mixed block of columns by block, `[n * r, d]`.
fn mix(weights: &Tensor, stacked: &Tensor) -> candle_core::Result<Tensor> {
    let (n, splits, skills) = weights.dims3()?;
    let (rows, d) = stacked.dims2()?;
    let (r, width) = (rows / skills, d / splits);
    let by_split = stacked.reshape((skills, r, splits, width))?.permute((2, 0, 1, 3))?.contiguous()?;
    let by_split = by_split.reshape((splits, skills, r * width))?;
    let mixed = weights.permute((1, 0, 2))?.contiguous()?.matmul(&by_split)?;
    mixed.reshape((splits, n, r, width))?.permute((1, 2, 0, 3))?.contiguous()?.reshape((n * r, d))
}

/// The tenant of a site: each row's task has the adapter that its routing makes of the skills.
struct SkillPatch {
    site: usize,
    form: SkillDims,
    a: Tensor,
    b: Tensor,
    logits: Tensor,
    /// Those of the first skill.
    blocks: Vec<StackBlock>,
    dropout: Option<Dropout>,
}

impl Patch for SkillPatch {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> candle_core::Result<()> {
        let mut tasks: Vec<u32> = Vec::new();
        let mut groups: Vec<TokenGroup> = Vec::new();
        for row in rows.iter() {
            let Some(task) = row.expert.map(|task| task as u32) else { continue };
            let expert = tasks.iter().position(|known| *known == task).unwrap_or(tasks.len());
            if expert == tasks.len() {
                tasks.push(task);
            }
            groups.push(TokenGroup { expert, tokens: TokenSelection::Contiguous(row.tokens()), weights: None });
        }
        if tasks.is_empty() {
            return Ok(());
        }
        let count = tasks.len();
        let chosen = self.logits.index_select(&Tensor::from_vec(tasks, count, self.logits.device())?, 0)?;
        let (a, b) = mixed(&weights(&chosen, self.form)?, &self.a, &self.b, &self.blocks)?;
        let (ranks_a, ranks_b) = (a.dim(0)? / count, b.dim(0)? / count);
        let of_task = |task: usize| {
            let moved = |range: &Range<usize>, by: usize| range.start + by..range.end + by;
            let block = |block: &StackBlock| StackBlock {
                a: moved(&block.a, task * ranks_a),
                b: moved(&block.b, task * ranks_b),
                ..block.clone()
            };
            self.blocks.iter().map(block).collect()
        };
        let grouped = GroupedLora::new(a, b, Arc::new(StackLayout((0..count).map(of_task).collect())))?;
        match &self.dropout {
            Some(dropout) => grouped.add(&dropout.apply(x, rows, self.site)?, groups.into(), out),
            None => grouped.add(x, groups.into(), out),
        }
    }
}
