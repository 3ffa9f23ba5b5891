//! `train-experts`: one expert per task, per cluster of tasks, or one for all of them.

use crate::args::task_args::TaskArgs;
use crate::args::train_config_args::{TrainConfigArgs, ensure_targets};
use crate::args::usage::count;
use crate::base::base_source::BaseSource;
use crate::base::model_files;
use crate::context::Context;
use crate::output::cluster_tables;
use crate::training;
use anyhow::{Result, bail};
use clap::Args;
use lorakit_adapter::Library;
use lorakit_cluster::Clusters;
use lorakit_fit::cluster::{ClusterCount, ClusteredStage, TwoStageMbc, ensure_possible, two_stage_mbc};
use lorakit_fit::lock_for;
use lorakit_fit::training::{TrainContext, TrainedKind, TrainingPlan, joint, of_clusters, private, random_examples};
use lorakit_model::Base;
use lorakit_task::{Split, Task};
use lorakit_train::{BoxError, FullFineTuning, LORA_SETTINGS, SKILL_SETTINGS, SkillDims, TrainConfig};
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// The settings of training, for --help.
pub const SETTINGS: &str = "\
TrainConfig, with their defaults and the names that PEFT and transformers give them:
  rank=4 (r)                    alpha=16 (lora_alpha)         dropout=0.05 (lora_dropout)
  target_modules=attention      or all-linear, names with commas between, or one regular expression
  tie_qkv=false                 one A for q, k and v
  learning_rate=1e-4            lr_scheduler=linear (lr_scheduler_type)
  warmup_ratio=0.06             weight_decay=0                max_grad_norm=0.1, of each expert; 0: none
  batch_size=16 (per_device_train_batch_size), of each expert
  gradient_accumulation_steps=1
  max_steps, per task           or num_epochs=5 (num_train_epochs)
  max_length=2048               loss_reduction=tokens|rows
  eval_steps                    updates between validations; 0: none; not given: an epoch
  save_steps=100                updates between checkpoints; 0: none
  experts_per_pass              not given: as many as the memory allows
  max_loss_jump=2               an expert whose loss jumps, or ends, higher is given up; 0: none
  gradient_checkpointing=false  less memory for more time
  routing_learning_rate=0.1     of the routing of --poly and --mhr
  splits=8                      blocks in which --mhr mixes its skills";

/// The arguments of `train-experts`.
#[derive(Args, Debug)]
#[command(after_help = SETTINGS)]
pub struct TrainExpertsArgs {
    /// The base: a model folder, hub:ORG/NAME[@REV], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    tasks: TaskArgs,
    /// The library that experts go to; made where there is none
    #[arg(long, value_name = "L")]
    library: PathBuf,
    #[command(flatten)]
    which: Which,
    /// Only these of the experts
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    experts: Vec<String>,
    /// Train experts anew that exist with other settings
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    settings: TrainConfigArgs,
}

/// What is trained, where it is not one expert per task.
#[derive(Args, Debug)]
#[group(multiple = false)]
struct Which {
    /// One expert per cluster of clusters.json, on its tasks' rows together
    #[arg(long, value_name = "FILE")]
    clusters: Option<PathBuf>,
    /// One expert, `joint`, on the rows of all tasks together
    #[arg(long)]
    joint: bool,
    /// All weights of the base in place of an adapter, on the rows of all tasks together: LIBRARY/models/full, a model
    /// folder that --base opens (FullFT of arXiv 2405.11157). Needs 20 bytes of memory a parameter, and a lower
    /// learning_rate than adapters; goes on where it stopped, as experts do
    #[arg(long)]
    full: bool,
    /// Both stages of MBC (arXiv 2405.11157): experts per task in LIBRARY/private on 40 % of the steps (or epochs),
    /// K clusters of their deltas (or auto) in LIBRARY/clusters.json, and an expert per cluster on the other 60 %
    #[arg(long, value_name = "K", conflicts_with = "experts")]
    mbc: Option<ClusterCount>,
    /// K experts on random parts of the rows of all tasks, a baseline of clusters
    #[arg(long, value_name = "K", value_parser = count)]
    random_examples: Option<NonZeroUsize>,
    /// K skills trained together, with a routing that says how much of each each task takes (Poly, arXiv 2202.13914):
    /// experts poly_0 to poly_K-1, and routers/poly for --router poly
    #[arg(long, value_name = "K", value_parser = count)]
    poly: Option<NonZeroUsize>,
    /// The same with a routing for each of `splits` blocks of A's input and B's output (MHR, arXiv 2211.03831): mhr_0 to
    /// mhr_K-1, and routers/mhr for --router mhr
    #[arg(long, value_name = "K", value_parser = count)]
    mhr: Option<NonZeroUsize>,
}

impl Which {
    /// What is trained; `model` is how the whole base is.
    fn kind<'a>(&self, settings: &TrainConfig, model: &'a FullFineTuning<'a>) -> TrainedKind<'a> {
        match (self.full, self.poly, self.mhr) {
            (true, ..) => TrainedKind::Model(model),
            (_, Some(skills), _) => TrainedKind::Skills(SkillDims { count: skills.get(), splits: 1 }),
            (.., Some(skills)) => TrainedKind::Skills(SkillDims { count: skills.get(), splits: settings.splits }),
            _ => TrainedKind::Experts,
        }
    }
}

/// The name of the model that `--full` makes.
const FULL: &str = "full";

/// Trains the experts that are not there yet.
pub fn run(args: TrainExpertsArgs, context: &Context) -> Result<()> {
    let settings = args.settings.over(TrainConfig::default())?;
    context.output.detail(format!("settings: {}", serde_json::to_string(&settings)?));
    let tasks = args.tasks.load()?;
    if let Some(k) = args.which.mbc {
        ensure_possible(k, tasks.iter().filter(|task| task.count(Split::Train) > 0).count())?;
    }
    let plans = chosen(plans(&args, &tasks)?, &args.experts)?;
    let place = args.base.resolve(context)?;
    let (base, vocabulary) = (place.base(context)?, place.tokenizer()?);
    ensure_targets(&settings, &base)?;
    let train = TrainContext {
        base: &base,
        tokenizer: &vocabulary,
        seed: context.seed,
        restart: args.restart,
        reporter: context,
    };
    let library = Library::open_or_create(&args.library, Some(base.identity()))?;
    let _lock = lock_for(&library, &base, context)?;
    if let Some(k) = args.which.mbc {
        return report_both_stages(&two_stage_mbc(&train, &library, &tasks, k, &settings)?, context);
    }
    let open = || -> Result<Base, BoxError> { Ok(place.trainable(context)?) };
    let write_model_files = |folder: &Path| -> Result<(), BoxError> { Ok(model_files::write_for_f32(&place, folder)?) };
    let model = FullFineTuning { open: &open, write_model_files: &write_model_files };
    let kind = args.which.kind(&settings, &model);
    let unused = unused(kind, &settings)?.join(", ");
    if !unused.is_empty() {
        context.output.warn(format!("what is trained here does not use the settings {unused}"));
    }
    let report = train.train(kind, &library, &plans, &settings)?;
    context.output.result(&training::document(&report), || training::text(&report))?;
    training::outcome(&report)
}

/// Reports both stages of MBC, or the first where that was not completed.
fn report_both_stages(stages: &TwoStageMbc, context: &Context) -> Result<()> {
    let TwoStageMbc { private, clustered } = stages;
    let Some(ClusteredStage { clusters, file, experts }) = clustered else {
        context.output.result(&training::document(private), || training::text(private))?;
        return training::outcome(private);
    };
    let mut document = training::document(experts);
    document["clusters"] = json!(file);
    document["private"] = training::document(private);
    context
        .output
        .result(&document, || format!("{}\n\n{}", cluster_tables::of_tasks(clusters), training::text(experts)))?;
    training::outcome(experts)
}

/// The settings that were changed and that what is made does not use.
fn unused(kind: TrainedKind, settings: &TrainConfig) -> Result<Vec<&'static str>> {
    let unused: Vec<&str> = match kind {
        TrainedKind::Experts => SKILL_SETTINGS.to_vec(),
        TrainedKind::Model(_) => [&LORA_SETTINGS[..], &SKILL_SETTINGS].concat(),
        TrainedKind::Skills(_) => Vec::new(),
    };
    let (given, default) = (serde_json::to_value(settings)?, serde_json::to_value(TrainConfig::default())?);
    Ok(unused.into_iter().filter(|name| given[*name] != default[*name]).collect())
}

/// Which experts there are to be.
fn plans<'a>(args: &TrainExpertsArgs, tasks: &'a [Task]) -> Result<Vec<TrainingPlan<'a>>> {
    let which = &args.which;
    if let Some(path) = &which.clusters {
        let clusters = Clusters::read(path)?;
        let library = Library::open(&args.library).ok();
        return of_clusters(&clusters, &path.display().to_string(), tasks, library.as_ref());
    }
    Ok(match which {
        Which { joint: true, .. } => vec![joint(tasks)],
        Which { full: true, .. } => vec![TrainingPlan::new(FULL, tasks.iter().collect())],
        Which { poly: Some(_), .. } => vec![TrainingPlan::new("poly", tasks.iter().collect())],
        Which { mhr: Some(_), .. } => vec![TrainingPlan::new("mhr", tasks.iter().collect())],
        Which { random_examples: Some(parts), .. } => random_examples(tasks, parts.get()),
        _ => private(tasks),
    })
}

/// The experts that `--experts` names; all where it names none.
fn chosen<'a>(plans: Vec<TrainingPlan<'a>>, names: &[String]) -> Result<Vec<TrainingPlan<'a>>> {
    if let Some(unknown) = names.iter().find(|name| plans.iter().all(|plan| plan.name != **name)) {
        let known: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
        bail!("--experts {unknown}: there is no such expert to be trained here; there are {}", known.join(", "));
    }
    Ok(plans.into_iter().filter(|plan| names.is_empty() || names.contains(&plan.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_setting() {
        let names = TrainConfig::names();
        let missing: Vec<&str> = names.split(", ").filter(|name| !SETTINGS.contains(*name)).collect();
        assert!(missing.is_empty(), "{missing:?} of {names}");
    }
}
