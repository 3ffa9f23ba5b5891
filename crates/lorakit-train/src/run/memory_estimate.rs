//! How much memory a run needs, and how much there is where its base computes, before any work starts.

use crate::job::Job;
use crate::train_config::TrainConfig;
use anyhow::{Result, bail};
use candle_core::Device;
use lorakit_lora::{Projection, Site};
use lorakit_model::{Base, Form};

/// What a pass needs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// The base's weights. On a CPU they are mapped, and the system can give their pages up.
    pub base: u64,
    /// Weights, gradients and moments of the adapters.
    pub adapters: u64,
    /// The same of the base's own weights, where those train.
    pub weights: u64,
    /// Activations of one forward, with their gradients.
    pub activations: u64,
}

impl MemoryEstimate {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.base + self.adapters + self.weights + self.activations
    }
}

/// The memory that a base computes in, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// In all.
    pub total: u64,
    /// Not taken by others. What the base's own weights take counts as available.
    pub available: u64,
}

impl DeviceMemory {
    /// That of the base's device. None where the system does not tell.
    pub fn of_device(base: &Base) -> Option<Self> {
        let memory = if base.device().is_cpu() { of_machine() } else { of_card(base.device()) }?;
        // A mapped file takes nothing that the system cannot take back.
        let taken = if base.device().is_cpu() && base.narrowed().is_none() { 0 } else { base.weight_bytes() };
        Some(Self { available: memory.available + taken, ..memory })
    }
}

fn of_machine() -> Option<DeviceMemory> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
    };
    Some(DeviceMemory { total: value("MemTotal:")?, available: value("MemAvailable:")? })
}

/// What CUDA tells of a card's memory.
#[cfg(feature = "cuda")]
fn of_card(card: &Device) -> Option<DeviceMemory> {
    let (free, total) = card.as_cuda_device().ok()?.cuda_stream().context().mem_get_info().ok()?;
    Some(DeviceMemory { total: total as u64, available: free as u64 })
}

/// Nothing is known of cards where none can be used.
#[cfg(not(feature = "cuda"))]
fn of_card(_: &Device) -> Option<DeviceMemory> {
    None
}

/// The part of the memory that a run plans with, in bytes: all of a machine's, and what a card has beside the base's
/// weights and what is trained of them. From the total and not from what is available, so that the same command plans the
/// same again.
fn budget(base: &Base, way: BackwardMode) -> u64 {
    let total = DeviceMemory::of_device(base).map_or(8 << 30, |memory| memory.total);
    if base.device().is_cpu() {
        return total;
    }
    let trained = if way == BackwardMode::Weights { bytes_per_parameter(base, way, 1) * base.parameters() } else { 0 };
    total.saturating_sub(base.weight_bytes() + trained)
}

/// How a layer is taken back, which decides what is kept of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackwardMode {
    /// On a tape: what each step reads.
    Tape,
    /// In candle's graph: what each op reads and makes, and all sums between.
    Graph,
    /// In candle's graph, and so are the base's own weights.
    Weights,
}

impl BackwardMode {
    /// How adapters are trained over a base.
    pub fn of_adapters(base: &Base) -> Self {
        if base.device().is_cpu() { Self::Tape } else { Self::Graph }
    }
}

/// What training keeps of one token, in bytes.
pub fn bytes_per_token(base: &Base, settings: &TrainConfig, way: BackwardMode) -> u64 {
    let layer = match way {
        BackwardMode::Tape => on_a_tape(base, settings),
        BackwardMode::Graph | BackwardMode::Weights => in_the_graph(base, settings, way),
    };
    let kept = if settings.gradient_checkpointing { base.config().hidden as u64 } else { layer };
    let logits = match way {
        BackwardMode::Tape | BackwardMode::Graph => 0,
        // The logits, how far they are below the largest, their exponentials, and a gradient.
        BackwardMode::Weights => 4 * base.config().vocabulary as u64,
    };
    // On its way back, one layer has the gradients of what it kept beside it.
    4 * (kept * base.layers() as u64 + 2 * layer + logits)
}

/// Values that a tape keeps of one token in a layer: residuals and norms, and what each site made.
fn on_a_tape(base: &Base, settings: &TrainConfig) -> u64 {
    let c = base.config();
    let (hidden, inner, queries) = (c.hidden as u64, c.intermediate as u64, (c.heads * c.head_dim) as u64);
    let mlp = match c.form {
        Form::Mistral => 3 * inner,
        Form::Phi => 2 * inner,
    };
    let values = 5 * hidden + qkv_width(base) + queries + mlp;
    // A dropped input has a mask of a byte a value.
    values + if settings.dropout > 0.0 { values / 4 } else { 0 }
}

/// Values that candle's graph keeps of one token in a layer, the mean of all. Each op holds what it reads: of a site with an
/// adapter its output, the delta and their sum, and its dropped input with the mask; of one that trains its output and that
/// of its projections; of the layer its norms and residuals, the rotated queries and keys, what was attended twice over,
/// and what the gate made.
fn in_the_graph(base: &Base, settings: &TrainConfig, way: BackwardMode) -> u64 {
    let c = base.config();
    let targets = settings.targets();
    // A pattern that cannot be read is told where modules are chosen by it.
    let is_target = |projection: &Projection| match &targets {
        Ok(targets) => targets.matches(&projection.module).unwrap_or(true),
        Err(_) => true,
    };
    let of_site = |site: &Site| {
        let (input, output) = (site.input as u64, site.output() as u64);
        let dropped = if settings.dropout > 0.0 { input + input / 4 } else { 0 };
        match way {
            BackwardMode::Weights => 2 * output,
            _ if site.projections.iter().any(is_target) => 3 * output + dropped,
            _ => output,
        }
    };
    let sites = base.sites().iter().map(of_site).sum::<u64>() / base.layers().max(1) as u64;
    // A norm that trains leaves all that it is made of.
    let norms_and_residuals = if way == BackwardMode::Weights { 15 } else { 5 } * c.hidden as u64;
    sites + norms_and_residuals + qkv_width(base) + 2 * (c.heads * c.head_dim) as u64 + c.intermediate as u64
}

/// Queries, keys and values of a token.
fn qkv_width(base: &Base) -> u64 {
    let c = base.config();
    ((c.heads + 2 * c.kv_heads) * c.head_dim) as u64
}

/// Tokens that go through the base together. On a CPU what a quarter of the machine's memory holds, and not more than
/// keeps every core busy: beyond that a batch only leaves the caches, and 2,048 tokens were never slower than 8,192. On a
/// card what half of the memory beside the weights holds, since larger products fill it better.
pub fn batch_tokens(base: &Base, settings: &TrainConfig, way: BackwardMode) -> usize {
    let (share, most) = if base.device().is_cpu() { (4, 2048) } else { (2, 8192) };
    ((budget(base, way) / share / bytes_per_token(base, settings, way)) as usize).clamp(256, most)
}

/// Parameters of one expert.
pub fn expert_parameters(base: &Base, settings: &TrainConfig) -> Result<u64> {
    let targets = settings.targets()?;
    let mut parameters = 0;
    for module in base.modules() {
        if targets.matches(&module.path)? {
            parameters += (settings.rank * (module.input + module.output)) as u64;
        }
    }
    Ok(parameters)
}

/// How many experts train together: as many as keep the batch full, and whose weights, gradients and moments take no
/// more than an eighth of the memory.
pub fn experts_per_pass(base: &Base, jobs: &[Job], settings: &TrainConfig) -> Result<usize> {
    if let Some(experts) = settings.experts_per_pass {
        return Ok(experts);
    }
    let way = BackwardMode::of_adapters(base);
    let by_memory = budget(base, way) / 8 / (20 * expert_parameters(base, settings)?).max(1);
    let rows: usize = jobs.iter().map(|job| job.train.len()).sum();
    let tokens: usize = jobs.iter().flat_map(|job| &job.train).map(|row| row.prompt.len() + row.target.len()).sum();
    let tokens_per_update = (tokens / rows.max(1)).max(1) * settings.batch_size * settings.gradient_accumulation_steps;
    let by_tokens = batch_tokens(base, settings, way).div_ceil(tokens_per_update);
    Ok(by_tokens.min(by_memory as usize).clamp(1, 64))
}

/// Bytes that a parameter takes in training, in f32: its value, two moments and the sum of its gradients, which is made a
/// second time of what tapes leave; of every batch in flight the gradient; and the best value so far, which is kept by the
/// machine.
fn bytes_per_parameter(base: &Base, way: BackwardMode, in_flight: usize) -> u64 {
    let sums = if way == BackwardMode::Tape { 2 } else { 1 };
    let best = u64::from(base.device().is_cpu());
    4 * (3 + sums + in_flight as u64 + best)
}

fn in_flight(base: &Base, settings: &TrainConfig, way: BackwardMode) -> usize {
    base.batch_parallel(batch_tokens(base, settings, way)).in_flight()
}

/// What the largest pass needs.
pub fn estimate(
    base: &Base,
    jobs: &[Job],
    experts: usize,
    settings: &TrainConfig,
    way: BackwardMode,
) -> Result<MemoryEstimate> {
    let of_parameter = bytes_per_parameter(base, way, in_flight(base, settings, way));
    Ok(MemoryEstimate {
        base: base.weight_bytes(),
        adapters: of_parameter * experts as u64 * expert_parameters(base, settings)?,
        weights: 0,
        activations: activations(base, jobs, settings, way),
    })
}

/// What training all weights of a base needs. The base's file is read once, and its pages are given up; on a card the
/// base as it was stays beside the one that trains.
pub fn full_estimate(base: &Base, jobs: &[Job], settings: &TrainConfig) -> MemoryEstimate {
    let of_parameter =
        bytes_per_parameter(base, BackwardMode::Weights, in_flight(base, settings, BackwardMode::Weights));
    MemoryEstimate {
        base: if base.device().is_cpu() { 0 } else { base.weight_bytes() },
        adapters: 0,
        weights: of_parameter * base.parameters(),
        activations: activations(base, jobs, settings, BackwardMode::Weights),
    }
}

fn activations(base: &Base, jobs: &[Job], settings: &TrainConfig, way: BackwardMode) -> u64 {
    let longest =
        jobs.iter().flat_map(|job| &job.train).map(|row| row.prompt.len() + row.target.len()).max().unwrap_or(0);
    let lanes = base.batch_parallel(batch_tokens(base, settings, way));
    let logits = 2 * (32 << 20);
    lanes.in_flight() as u64 * (lanes.tokens().max(longest) as u64 * bytes_per_token(base, settings, way)) + logits
}

/// Fails where the memory that the base computes in cannot hold the estimate.
pub fn ensure_fits(base: &Base, estimate: &MemoryEstimate) -> Result<()> {
    let Some(DeviceMemory { available, .. }) = DeviceMemory::of_device(base) else { return Ok(()) };
    if estimate.total() > available {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        let advice = match estimate.weights {
            0 => "a shorter max_length, or fewer experts_per_pass",
            _ => "a shorter max_length, or an adapter in place of all weights",
        };
        bail!(
            "training needs about {:.1} GiB (base {:.1}, adapters {:.1}, all weights {:.1}, activations {:.1}) and {:.1} GiB are available; try --set gradient_checkpointing=true, {advice}",
            gib(estimate.total()),
            gib(estimate.base),
            gib(estimate.adapters),
            gib(estimate.weights),
            gib(estimate.activations),
            gib(available)
        );
    }
    Ok(())
}
