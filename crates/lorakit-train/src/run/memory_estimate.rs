//! Memory that training needs, estimated before it starts; batch and pass sizes follow from it.

use crate::backward::backward_mode::BackwardMode;
use crate::error::{Result, TrainError};
use crate::job::Job;
use crate::run::device_memory::{self, DeviceMemory, MemoryEstimate};
use crate::run::tape_memory::{BatchTokens, TapeMemory, adapted_sites};
use crate::step_interval::StepInterval;
use crate::train_config::TrainConfig;
use lorakit_lora::Site;
use lorakit_model::Base;
use lorakit_model::architecture::BlockDescriptor;
use lorakit_task::Example;
use std::cmp::Reverse;

/// The memory that a run may plan with, in bytes: all of a machine's, or a GPU's without the base's weights and what is
/// trained of them. From the total, not the available memory, so that the same command plans the same again.
fn budget(base: &Base, mode: BackwardMode) -> u64 {
    let total = DeviceMemory::of_device(base).map_or(8 << 30, |memory| memory.total);
    if base.device().is_cpu() {
        return total;
    }
    let trained =
        if mode == BackwardMode::Weights { bytes_per_parameter(mode, 1, true, false) * base.parameters() } else { 0 };
    total.saturating_sub(base.weight_bytes() + trained)
}

/// The most bytes that a batch has at a time for each of its tokens, if all predict targets.
pub fn bytes_per_token(base: &Base, config: &TrainConfig, mode: BackwardMode) -> u64 {
    match mode {
        BackwardMode::Tape => TapeMemory::new(base, config).peak(BatchTokens { all: 1, targets: 1 }),
        BackwardMode::Graph | BackwardMode::Weights => {
            let layer = graph_values(base, config, mode);
            let kept = if config.gradient_checkpointing { base.config().hidden as u64 } else { layer };
            // In the backward, one layer is there, with gradients.
            4 * (kept * base.layers() as u64 + 2 * layer)
        }
    }
}

/// Values that norms after attention and MLP, and those of queries and keys, keep per token and layer.
fn further_norms(base: &Base) -> u64 {
    let (config, descriptor) = (base.config(), &base.config().descriptor);
    let after = match descriptor.block {
        BlockDescriptor::Sequential { attention, mlp } => [attention.after, mlp.after].iter().flatten().count(),
        BlockDescriptor::Parallel { .. } => 0,
    };
    let of_qk = if descriptor.qk_norm.is_some() { qkv_width(base) } else { 0 };
    (after * config.hidden) as u64 + of_qk
}

/// Values that candle's graph keeps per token and layer, averaged over layers. Each op keeps its inputs: a site with
/// adapters its output, the delta, their sum, and its dropped input with the mask; a site that trains its output and those
/// of its projections, if it has several; a layer its norms and residuals, the rotated queries and keys, the attention's
/// output twice, and the activation's output. On a CPU norms and attention are one op each.
fn graph_values(base: &Base, config: &TrainConfig, mode: BackwardMode) -> u64 {
    let c = base.config();
    let of_site = |(site, adapted): (&Site, bool)| {
        let (input, output) = (site.input as u64, site.output() as u64);
        let dropped = if config.dropout > 0.0 { input + input / 4 } else { 0 };
        match mode {
            BackwardMode::Weights if site.projections.len() == 1 => output,
            BackwardMode::Weights => 2 * output,
            _ if adapted => 3 * output + dropped,
            _ => output,
        }
    };
    let sites = base.sites().iter().zip(adapted_sites(base, config)).map(of_site).sum::<u64>();
    let sites = sites / base.layers().max(1) as u64;
    let (hidden, queries) = (c.hidden as u64, (c.heads * c.head_dim) as u64);
    let others = match mode {
        BackwardMode::Weights if base.device().is_cpu() => 4 * hidden + queries,
        // A norm that trains keeps all of its intermediate values.
        BackwardMode::Weights => 15 * hidden + qkv_width(base) + 2 * queries,
        BackwardMode::Graph | BackwardMode::Tape => 5 * hidden + qkv_width(base) + 2 * queries,
    };
    sites + others + further_norms(base) + c.intermediate as u64
}

/// The queries, keys and values of a token.
fn qkv_width(base: &Base) -> u64 {
    let c = base.config();
    ((c.heads + 2 * c.kv_heads) * c.head_dim) as u64
}

/// Maximum tokens per forward. On a CPU what fits into a quarter of the memory, and no more than keeps all cores busy:
/// a larger batch only leaves the caches, and 2,048 tokens were never slower than 8,192. On a GPU what fits into half of
/// the memory beside the weights, since larger products use it better.
pub fn batch_tokens(base: &Base, config: &TrainConfig, mode: BackwardMode) -> usize {
    let (share, most) = if base.device().is_cpu() { (4, 2048) } else { (2, 8192) };
    ((budget(base, mode) / share / bytes_per_token(base, config, mode)) as usize).clamp(256, most)
}

/// Trained parameters of one expert.
pub fn expert_parameters(base: &Base, config: &TrainConfig) -> Result<u64> {
    let targets = config.targets(base)?;
    let mut parameters = 0;
    for module in base.modules() {
        if targets.matches(&module.path)? {
            parameters += (config.rank * (module.input + module.output)) as u64;
        }
    }
    Ok(parameters)
}

/// How many experts train together: as many as fill the batches, and whose values, gradients and moments take at most an
/// eighth of the memory.
pub fn experts_per_pass(base: &Base, jobs: &[Job], config: &TrainConfig) -> Result<usize> {
    if let Some(experts) = config.experts_per_pass {
        return Ok(experts);
    }
    let mode = BackwardMode::of_adapters(base);
    let by_memory = budget(base, mode) / 8 / (20 * expert_parameters(base, config)?).max(1);
    let rows: usize = jobs.iter().map(|job| job.train.len()).sum();
    let tokens: usize = jobs.iter().flat_map(|job| &job.train).map(|row| row.len()).sum();
    let tokens_per_step = (tokens / rows.max(1)).max(1) * config.rows_per_step();
    let by_tokens = batch_tokens(base, config, mode).div_ceil(tokens_per_step);
    Ok(by_tokens.min(by_memory as usize).clamp(1, 64))
}

/// Bytes per trained parameter, in f32: its value, two moments, gradients, and its best value so far. There are gradients of
/// the batches that are computed at the same time, and where a step has several batches their sum; on tapes one batch has
/// its gradients when its activations are gone.
fn bytes_per_parameter(mode: BackwardMode, concurrent: u64, sums: bool, keeps_best: bool) -> u64 {
    let beside = u64::from(mode == BackwardMode::Tape);
    4 * (3 + (concurrent + u64::from(sums) - beside).max(1) + u64::from(keeps_best))
}

/// Whether the machine's memory holds each expert's best values.
fn keeps_best(base: &Base, jobs: &[Job], config: &TrainConfig) -> bool {
    let validates = jobs.is_empty() || jobs.iter().any(|job| !job.validation.is_empty());
    base.device().is_cpu() && validates && config.eval_steps != Some(StepInterval::NEVER)
}

/// Memory of a pass that trains `experts` adapters together.
pub fn estimate(
    base: &Base,
    jobs: &[Job],
    experts: usize,
    config: &TrainConfig,
    mode: BackwardMode,
) -> Result<MemoryEstimate> {
    let step = StepBatches::of(base, jobs, experts, config, mode);
    let per_parameter = bytes_per_parameter(mode, step.concurrent, step.several, keeps_best(base, jobs, config));
    Ok(MemoryEstimate {
        process: process_bytes(base),
        base: frozen_bytes(base),
        adapters: per_parameter * experts as u64 * expert_parameters(base, config)?,
        weights: 0,
        activations: activations(base, step, config, mode),
    })
}

/// What a CPU's allocator holds besides, in bytes per parameter. Measured over a base of 34 million parameters: 20 bytes
/// where 16 are accounted for, and 25 instead of 20 with the best values.
const HELD_PER_PARAMETER: u64 = 4;

/// Memory of training all weights of a base. Its file is read once and its pages are released; on a GPU the frozen base
/// stays beside the trained one.
pub fn full_estimate(base: &Base, jobs: &[Job], config: &TrainConfig) -> MemoryEstimate {
    let mode = BackwardMode::Weights;
    let step = StepBatches::of(base, jobs, 1, config, mode);
    let held = if base.device().is_cpu() { HELD_PER_PARAMETER } else { 0 };
    let per_parameter = held + bytes_per_parameter(mode, step.concurrent, step.several, keeps_best(base, jobs, config));
    MemoryEstimate {
        process: process_bytes(base),
        base: if base.device().is_cpu() { 0 } else { base.weight_bytes() },
        adapters: 0,
        weights: per_parameter * base.parameters(),
        activations: activations(base, step, config, mode),
    }
}

/// The weights of a frozen base that training reads: on a CPU, of an embedding that is not the head too, only the rows of
/// some tokens.
fn frozen_bytes(base: &Base) -> u64 {
    let (all, config) = (base.weight_bytes(), base.config());
    if config.tied || !base.device().is_cpu() {
        return all;
    }
    let share = (config.vocabulary * config.hidden) as f64 / base.parameters().max(1) as f64;
    all - (all as f64 * share) as u64
}

/// What this process holds of a CPU's memory before it trains.
fn process_bytes(base: &Base) -> u64 {
    if base.device().is_cpu() { device_memory::process_bytes().unwrap_or_default() } else { 0 }
}

/// These bytes with what fragmentation adds: freed memory is kept for the next step, and what was freed between tensors
/// that stay is rarely filled to its end. It was 5 to 11 % of activations where it was measured.
const fn with_fragmentation(bytes: u64) -> u64 {
    bytes + bytes / 12
}

/// What each thread holds beside the activations, in values of the MLP's width per token: buffers of its part of an op, which
/// the allocator keeps for it. Measured over a small base with one to three threads, at 14 to 34 MB for one and 48 to 70 for
/// three, of a batch of which a value of that width takes 8 MB.
const THREAD_BUFFERS: f64 = 2.5;

/// The batches of a step.
#[derive(Clone, Copy)]
struct StepBatches {
    /// The largest.
    tokens: BatchTokens,
    /// How many are computed at the same time.
    concurrent: u64,
    /// Whether there are several.
    several: bool,
}

impl StepBatches {
    fn of(base: &Base, jobs: &[Job], experts: usize, config: &TrainConfig, mode: BackwardMode) -> Self {
        let parallel = base.batch_parallel(batch_tokens(base, config, mode));
        let step = step_tokens(jobs, experts, config);
        let longest = jobs.iter().flat_map(|job| &job.train).map(|row| row.len()).max().unwrap_or(0);
        let all = step.min(parallel.tokens()).max(longest);
        let batches = step.div_ceil(all.max(1)).max(1);
        Self {
            tokens: BatchTokens { all: all as u64, targets: (all as f64 * target_share(jobs)).ceil() as u64 },
            concurrent: batches.min(parallel.in_flight()) as u64,
            several: batches > 1,
        }
    }
}

/// What the batches that are computed at the same time hold, with the logits.
fn activations(base: &Base, step: StepBatches, config: &TrainConfig, mode: BackwardMode) -> u64 {
    let StepBatches { tokens, concurrent, .. } = step;
    match mode {
        BackwardMode::Tape => {
            let logits = base.lm_head().logit_bytes(tokens.targets as usize);
            let tapes = TapeMemory::new(base, config);
            let width = 4 * tokens.all * base.config().intermediate as u64;
            let buffers = (rayon::current_num_threads() as f64 * THREAD_BUFFERS * width as f64) as u64;
            concurrent * with_fragmentation(tapes.peak(tokens) + tapes.recompute_fragmentation(tokens) + logits)
                + buffers
        }
        BackwardMode::Graph => concurrent * (tokens.all * bytes_per_token(base, config, mode)) + 2 * (32 << 20),
        BackwardMode::Weights => {
            // Of at least 256 tokens: the logits, their differences from the maximum, the exponentials, and gradients.
            let row = 4 * base.config().vocabulary as u64;
            let logits = 6 * (row * tokens.targets).min((32 << 20).max(256 * row));
            concurrent * (tokens.all * bytes_per_token(base, config, mode)) + logits
        }
    }
}

/// The most tokens of a step: those of the longest rows of the experts with the most; without jobs, of rows of the greatest
/// length.
fn step_tokens(jobs: &[Job], experts: usize, config: &TrainConfig) -> usize {
    let rows = config.rows_per_step();
    if jobs.is_empty() {
        return experts.saturating_mul(rows).saturating_mul(config.max_length);
    }
    let of_job = |job: &Job| {
        let mut lengths: Vec<usize> = job.train.iter().map(|row| row.len()).collect();
        lengths.sort_unstable_by_key(|&length| Reverse(length));
        lengths.into_iter().take(rows).sum::<usize>()
    };
    let mut tokens: Vec<usize> = jobs.iter().map(of_job).collect();
    tokens.sort_unstable_by_key(|&tokens| Reverse(tokens));
    tokens.into_iter().take(experts).sum()
}

/// The largest share of tokens that predict targets among the jobs' rows; without jobs, 1.
fn target_share(jobs: &[Job]) -> f64 {
    let share = |job: &Job| {
        let count = |of: fn(&Example) -> usize| job.train.iter().map(of).sum::<usize>();
        count(Example::loss_tokens) as f64 / count(Example::len).max(1) as f64
    };
    jobs.iter().map(share).reduce(f64::max).unwrap_or(1.0)
}

/// Fails if the base's device has less memory than training still needs. What this process holds already is not available
/// any more; of a second training in one process, it would count the base and kept buffers twice.
pub fn check_fits(base: &Base, estimate: &MemoryEstimate) -> Result<()> {
    let needed = estimate.of_any_process();
    match DeviceMemory::of_device(base) {
        Some(DeviceMemory { available, .. }) if needed.total() > available => {
            Err(TrainError::Memory { estimate: needed, available })
        }
        _ => Ok(()),
    }
}
