//! `base`: inspects a base model.

use crate::args::train_config_args;
use crate::args::usage::usage_error;
use crate::base::base_source::BaseSource;
use crate::base::pico;
use crate::command_context::CommandContext;
use crate::output::console::make_parent;
use crate::output::text_table::{bytes, table};
use anyhow::Result;
use clap::{Args, Subcommand};
use lorakit_model::Base;
use lorakit_train::TrainConfig;
use lorakit_train::{BackwardMode, DeviceMemory, MemoryEstimate, memory_estimate};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Library sizes for which the memory of routing is estimated.
const LIBRARIES: [u64; 3] = [10, 100, 256];

/// The subcommands of `base`.
#[derive(Debug, Subcommand)]
pub enum BaseCommand {
    /// Show architecture, parameters, and the memory for training and routing
    Info(InfoArgs),
    /// Write pico, the bundled model, as a Hugging Face model folder
    Write(WriteArgs),
}

/// The arguments of `base write`.
#[derive(Args, Debug)]
pub struct WriteArgs {
    /// Output folder
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// The arguments of `base info`.
#[derive(Args, Debug)]
#[command(override_usage = "lorakit base info [OPTIONS] <B>")]
pub struct InfoArgs {
    /// Base model: a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico
    #[arg(value_name = "B", required_unless_present = "named_base")]
    base: Option<BaseSource>,
    /// The same, as it is given to other commands
    #[arg(long = "base", value_name = "B", hide = true, conflicts_with = "base")]
    named_base: Option<BaseSource>,
    /// Training settings for the memory estimate
    #[arg(long, num_args = 1.., value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// Runs a subcommand of `base`.
pub fn run(command: BaseCommand, context: &CommandContext) -> Result<()> {
    match command {
        BaseCommand::Info(args) => info(args, context),
        BaseCommand::Write(args) => {
            make_parent(&args.out)?;
            pico::write(&args.out)?;
            context
                .output
                .result(&json!({ "written": args.out }), || format!("pico was written to {}", args.out.display()))
        }
    }
}

fn info(args: InfoArgs, context: &CommandContext) -> Result<()> {
    let mut settings = TrainConfig::default();
    train_config_args::assign(&mut settings, &args.set)?;
    let given = args.base.or(args.named_base).ok_or_else(|| usage_error("give a base model"))?;
    let base = given.open(context)?;
    train_config_args::ensure_targets(&settings, &base)?;
    train_config_args::ensure_rank(&settings, &base, context)?;
    let needs = MemoryNeeds::of(&base, &settings)?;
    context.output.result(&document(&base, &settings, &needs), || text(&base, &settings, &needs))
}

/// Memory estimates in bytes.
struct MemoryNeeds {
    expert_parameters: u64,
    /// By the number of experts per pass.
    training: Vec<(usize, MemoryEstimate)>,
    /// Full fine-tuning.
    full: MemoryEstimate,
    /// By the number of experts in the library.
    routing: Vec<(u64, u64)>,
}

impl MemoryNeeds {
    fn of(base: &Base, settings: &TrainConfig) -> Result<Self> {
        let expert_parameters = memory_estimate::expert_parameters(base, settings)?;
        let training = |experts| {
            Ok((experts, memory_estimate::estimate(base, &[], experts, settings, BackwardMode::of_adapters(base))?))
        };
        // At most: routers that mix every expert stack them in f32 beside the base. Arrow on a CPU does not.
        let routing = |experts| (experts, base.weight_bytes() + 4 * experts * expert_parameters);
        Ok(Self {
            expert_parameters,
            training: [1, 8, 64].into_iter().map(training).collect::<Result<_>>()?,
            full: memory_estimate::full_estimate(base, &[], settings),
            routing: LIBRARIES.map(routing).into(),
        })
    }
}

fn document(base: &Base, settings: &TrainConfig, needs: &MemoryNeeds) -> Value {
    let identity = base.identity();
    let training = needs.training.iter().map(|(experts, need)| {
        json!({
            "experts": experts,
            "process": need.process,
            "base": need.base,
            "adapters": need.adapters,
            "activations": need.activations,
            "total": need.total(),
        })
    });
    let routing = needs.routing.iter().map(|(experts, total)| json!({ "experts": experts, "total": total }));
    let memory = DeviceMemory::of_device(base);
    json!({
        "name": identity.name,
        "architecture": identity.architecture,
        "parameters": base.parameters(),
        "file_bytes": base.file_bytes(),
        "weight_types": base.weight_types().iter().map(|weights| {
            json!({ "type": weights.name, "parameters": weights.parameters, "bytes": weights.bytes })
        }).collect::<Vec<_>>(),
        "dimensions": identity.dimensions,
        "max_positions": base.config().max_positions,
        "fingerprint": identity.fingerprint,
        "sites": base.sites().len(),
        "modules": module_names(base),
        "memory": {
            "machine": memory.map(|memory| json!({ "total": memory.total, "available": memory.available })),
            "rank": settings.rank,
            "target_modules": settings.target_modules,
            "expert_parameters": needs.expert_parameters,
            "training": training.collect::<Vec<_>>(),
            "full_training": {
                "base": needs.full.base,
                "weights": needs.full.weights,
                "activations": needs.full.activations,
                "total": needs.full.total(),
            },
            "routing": routing.collect::<Vec<_>>(),
        },
    })
}

/// Input and output features of the modules that adapters can target, by their last path segment.
fn module_names(base: &Base) -> BTreeMap<String, [usize; 2]> {
    base.modules()
        .into_iter()
        .map(|module| (module.path.rsplit('.').next().unwrap_or_default().to_owned(), [module.input, module.output]))
        .collect()
}

/// The types of the weights with their sizes, the largest first.
fn weight_types(base: &Base) -> String {
    let types = base.weight_types().iter().map(|weights| format!("{} {}", weights.name, bytes(weights.bytes)));
    types.collect::<Vec<_>>().join(", ")
}

fn text(base: &Base, settings: &TrainConfig, needs: &MemoryNeeds) -> String {
    let identity = base.identity();
    let fact = |name: &str, value: String| vec![name.to_owned(), value];
    let mut facts = vec![
        fact("name", identity.name.clone()),
        fact("architecture", identity.architecture.clone()),
        fact("parameters", base.parameters().to_string()),
        fact("weight files", bytes(base.file_bytes())),
        fact("weight types", weight_types(base)),
        fact("maximum positions", base.config().max_positions.to_string()),
    ];
    facts.extend(identity.dimensions.iter().map(|(name, value)| fact(name, value.to_string())));
    facts.push(fact("fingerprint", identity.fingerprint.clone()));
    let modules =
        module_names(base).into_iter().map(|(name, [input, output])| vec![name, input.to_string(), output.to_string()]);
    let training = needs.training.iter().map(|(experts, need)| {
        vec![experts.to_string(), bytes(need.base), bytes(need.adapters), bytes(need.activations), bytes(need.total())]
    });
    let routing = needs.routing.iter().map(|(experts, total)| vec![experts.to_string(), bytes(*total)]);
    let place = if base.device().is_cpu() { "this machine" } else { "the GPU" };
    let machine = DeviceMemory::of_device(base).map_or(String::new(), |memory| {
        format!("; {place} has {}, {} available", bytes(memory.total), bytes(memory.available))
    });
    format!(
        "{}\n\nModules:\n{}\n\n\
         Training memory, rank {} on {} ({} parameters per expert){machine}:\n{}\n\
         Full fine-tuning: {}\n\n\
         Routing memory:\n{}",
        table(["base", ""], facts),
        table(["module", "input", "output"], modules),
        settings.rank,
        settings.target_modules,
        needs.expert_parameters,
        table(["experts per pass", "base", "adapters", "activations", "total"], training),
        bytes(needs.full.total()),
        table(["experts", "total"], routing)
    )
}
