//! `train-experts`: trains one expert per task, per cluster, or for all tasks.

use crate::args::part_arg::PartArg;
use crate::args::task_args::{self, TaskArgs};
use crate::args::train_config_args::{TrainConfigArgs, ensure_rank, ensure_targets};
use crate::args::usage::bounded_count;
use crate::base::base_source::BaseSource;
use crate::base::model_files;
use crate::command_context::CommandContext;
use crate::output::cluster_tables;
use crate::output::training_report;
use anyhow::{Result, bail};
use clap::Args;
use lorakit_adapter::Library;
use lorakit_cluster::Clusters;
use lorakit_fit::cluster::{
    ClusterCount, ClusteredStage, TwoStageMbc, TwoStagePlan, ensure_enough_tasks, plan_two_stage_mbc, two_stage_mbc,
};
use lorakit_fit::training::{TrainContext, TrainedKind, TrainingPlan, joint, of_clusters, private, random_examples};
use lorakit_fit::{ensure_same_base, lock_for, pluralize};
use lorakit_model::Base;
use lorakit_task::{BosTokens, Split, Task};
use lorakit_train::{BoxError, FullFineTuning, LORA_SETTINGS, PlannedPass, SKILL_SETTINGS, SkillDims, TrainConfig};
use serde::Serialize;
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// The list of training settings for `--help`.
pub const SETTINGS: &str = "\
Training settings, with aliases of PEFT and transformers; most defaults are those of arXiv
2405.11157:
  rank=4 (r)                    alpha=16 (lora_alpha)         dropout=0.05 (lora_dropout)
  target_modules=attention      or all-linear, comma-separated names, or a regular expression
  use_rslora=false              scale alpha/sqrt(rank) instead of alpha/rank (no use_dora)
  tie_qkv=false                 share A between q, k and v
  learning_rate=1e-4            lr_scheduler=linear|cosine|constant (lr_scheduler_type), all
                                after a warm-up (constant: constant_with_warmup)
  warmup_ratio=0.06             or warmup_steps; below 1 they are the ratio
  weight_decay=0
  max_grad_norm=0.1, per expert; 0: none
  batch_size=16 (per_device_train_batch_size), per expert
  gradient_accumulation_steps=1
  max_steps, per task           or num_epochs=5 (num_train_epochs), such as 2.5
  max_length=2048               loss_reduction=tokens|rows
  loss=assistant|last|all       tokens that carry loss: every reply of a conversation with its
                                end-of-turn token (or the answer of a plain row); the last
                                reply; all tokens, TRL's default for conversations
  chat=false (--chat)           put plain rows through the base's chat template too
  bos=auto|never (--bos)        BOS where tokenizer or template put it, or never (the papers)
  eval_steps                    steps between validations; below 1, a fraction of all steps;
                                0: none; default: an epoch
  save_steps=100                steps between checkpoints, or a fraction; 0: none
  experts_per_pass              default: as many as fit in memory
  max_loss_jump=2               stop an expert whose loss exceeds guessing and this multiple
                                of what it was on the same rows before training; 0: never
  gradient_checkpointing=false  trade time for memory
  routing_learning_rate=0.1     for the routing of --poly and --mhr
  splits=8                      blocks that --mhr routes separately";

/// The arguments of `train-experts`.
#[derive(Args, Debug)]
#[command(after_help = SETTINGS)]
pub struct TrainExpertsArgs {
    /// Base model: a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    tasks: TaskArgs,
    /// Library for the experts; created if it does not exist
    #[arg(long, value_name = "L")]
    library: PathBuf,
    #[command(flatten)]
    mode: TrainMode,
    /// Train only these experts [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    experts: Vec<String>,
    /// Retrain experts that exist with different settings
    #[arg(long)]
    restart: bool,
    /// Train a part of the passes: the I-th of N, from 0, or the one of a Slurm, HyperQueue or Kubernetes array (auto).
    /// Parts run at once on machines that share the library's folder, and end as one command would. With --mbc, run all
    /// parts a second time: clusters need the experts of every part
    #[arg(long, value_name = "I/N|auto/N")]
    part: Option<PartArg>,
    /// Print one JSON line per pass (experts, rows, steps, tokens, memory), and train nothing. With --mbc, passes of
    /// experts per cluster are known once the experts per task are trained and clustered
    #[arg(long)]
    plan: bool,
    /// Put rows of prompt and answer through the base's chat template, as conversations always are; same as --set chat=true
    #[arg(long)]
    chat: bool,
    /// Begin texts with BOS: auto, where the tokenizer or template puts it; or never; same as --set bos=never
    #[arg(long, value_name = "auto|never")]
    bos: Option<BosTokens>,
    #[command(flatten)]
    settings: TrainConfigArgs,
}

/// What to train instead of one expert per task.
#[derive(Args, Debug)]
#[group(multiple = false)]
struct TrainMode {
    /// Train one expert per cluster of this clusters.json
    #[arg(long, value_name = "FILE")]
    clusters: Option<PathBuf>,
    /// Train a single expert, `joint`, on all tasks
    #[arg(long)]
    joint: bool,
    /// Fine-tune all weights of the base on all tasks into LIBRARY/models/full, a model folder (FullFT of
    /// arXiv 2405.11157). Needs 16 to 24 bytes of memory per parameter, and a lower learning_rate than adapters
    #[arg(long)]
    full: bool,
    /// Run both stages of MBC (arXiv 2405.11157): experts per task in LIBRARY/private for 40 % of the steps, K clusters
    /// (or auto) of their deltas in LIBRARY/clusters.json, and an expert per cluster for the other 60 %
    #[arg(long, value_name = "K", conflicts_with = "experts")]
    mbc: Option<ClusterCount>,
    /// Train K experts on random parts of all rows, a baseline for clusters
    #[arg(long, value_name = "K", value_parser = bounded_count)]
    random_examples: Option<NonZeroUsize>,
    /// Train K skills and their weights per task (Poly, arXiv 2202.13914): experts poly_0 to poly_K-1, and routers/poly
    /// for --router poly
    #[arg(long, value_name = "K", value_parser = bounded_count)]
    poly: Option<NonZeroUsize>,
    /// Like --poly with weights for each of `splits` blocks of A's input and B's output (MHR, arXiv 2211.03831)
    #[arg(long, value_name = "K", value_parser = bounded_count)]
    mhr: Option<NonZeroUsize>,
}

impl TrainMode {
    /// The kind of training; `model` is used for `--full`.
    fn kind<'a>(&self, settings: &TrainConfig, model: &'a FullFineTuning<'a>) -> TrainedKind<'a> {
        match (self.full, self.poly, self.mhr) {
            (true, ..) => TrainedKind::Model(model),
            (_, Some(skills), _) => TrainedKind::Skills(SkillDims { count: skills.get(), splits: 1 }),
            (.., Some(skills)) => TrainedKind::Skills(SkillDims { count: skills.get(), splits: settings.splits }),
            _ => TrainedKind::Experts,
        }
    }
}

/// The name of the model that `--full` trains.
const FULL: &str = "full";

/// Trains the experts that the library lacks.
pub fn run(args: TrainExpertsArgs, context: &CommandContext) -> Result<()> {
    let mut settings = args.settings.over(TrainConfig::default())?;
    settings.chat |= args.chat;
    settings.bos = args.bos.unwrap_or(settings.bos);
    context.output.detail(format!("settings: {}", serde_json::to_string(&settings)?));
    let tasks = args.tasks.load(context)?;
    task_args::warn_of_unused(&tasks, context);
    if let Some(k) = args.mode.mbc {
        ensure_enough_tasks(k, tasks.iter().filter(|task| task.count(Split::Train) > 0).count())?;
    }
    let plans = selected(plans(&args, &tasks, context)?, &args.experts)?;
    let resolved = args.base.resolve(context)?;
    let (base, tokenizer) = (resolved.base(context)?, resolved.tokenizer()?.with_encoding(settings.row_encoding()));
    ensure_targets(&settings, &base)?;
    if !args.mode.full {
        ensure_rank(&settings, &base, context)?;
    }
    let train = TrainContext {
        base: &base,
        tokenizer: &tokenizer,
        seed: context.seed,
        restart: args.restart,
        part: args.part.map(|part| part.part()).transpose()?,
        reporter: context,
    };
    let open = || -> Result<Base, BoxError> { Ok(resolved.trainable(context)?) };
    let write_model_files =
        |folder: &Path| -> Result<(), BoxError> { Ok(model_files::write_for_f32(&resolved, folder)?) };
    let untrained = || Ok(resolved.checkpoint()?.stored(resolved.config()?.descriptor.unused));
    let model = FullFineTuning { open: &open, write_model_files: &write_model_files, untrained: &untrained };
    let kind = args.mode.kind(&settings, &model);
    let unused = [args.settings.unused(&settings)?, unused(&args.mode, &settings)?].concat().join(", ");
    if !unused.is_empty() {
        context.output.warn(format!("unused settings: {unused}"));
    }
    if let (true, Some(k)) = (args.plan, args.mode.mbc) {
        return report_both_plans(&plan_two_stage_mbc(&train, &args.library, &tasks, k, &settings)?, context);
    }
    if args.plan {
        let library = Library::open_or_plan(&args.library, Some(base.identity()))?;
        return report_plan(&train.plan(kind, &library, &plans, &settings)?, context);
    }
    let library = Library::open_or_create(&args.library, Some(base.identity()))?;
    context.note_other_form(&library, &base);
    let library = match train.part {
        None => library.guarded_by(&[&lock_for(&library, &base, context)?]),
        // The part locks the library itself, for moments.
        Some(_) => ensure_same_base(&library, &base).map(|()| library)?,
    };
    if let Some(k) = args.mode.mbc {
        return report_both_stages(&two_stage_mbc(&train, &library, &tasks, k, &settings)?, context);
    }
    warn_of_other_seed(kind, &library, &plans, context)?;
    let report = train.train(kind, &library, &plans, &settings)?;
    context.output.result(&training_report::document(&report), || training_report::text(&report))?;
    training_report::outcome(&report)
}

/// Reports the passes of a run: a line each, or one document.
fn report_plan(passes: &[PlannedPass], context: &CommandContext) -> Result<()> {
    let lines = passes.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    context.output.result(&json!({ "passes": passes }), || lines.join("\n"))
}

/// Reports the passes of both stages of MBC, or those of the first if the clusters are not known.
fn report_both_plans(plan: &TwoStagePlan, context: &CommandContext) -> Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        stage: &'static str,
        #[serde(flatten)]
        pass: &'a PlannedPass,
    }
    let of = |stage| move |pass| Line { stage, pass };
    let clustered = plan.clustered.iter().flatten().map(of("clusters"));
    let passes: Vec<Line> = plan.private.iter().map(of("private")).chain(clustered).collect();
    if plan.clustered.is_none() {
        context.output.status("the passes of experts per cluster are known once the experts per task are clustered");
    }
    let lines = passes.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
    let document = json!({ "passes": passes, "clusters_known": plan.clustered.is_some() });
    context.output.result(&document, || lines.join("\n"))
}

/// Reports both stages of MBC, or the first if it was not completed.
fn report_both_stages(stages: &TwoStageMbc, context: &CommandContext) -> Result<()> {
    let TwoStageMbc { private, clustered } = stages;
    let Some(ClusteredStage { clusters, file, experts }) = clustered else {
        let waits = if private.is_complete() {
            Some("\nclustering needs the experts of every part; run the same parts again once all are trained")
        } else if !private.refused.is_empty() && !private.reports_refused() {
            Some("\nclustering needs an expert of every task; part 0 reports those that cannot be trained")
        } else {
            None
        };
        context.output.result(&training_report::document(private), || {
            training_report::text(private) + waits.unwrap_or_default()
        })?;
        return training_report::outcome(private);
    };
    let mut document = training_report::document(experts);
    document["clusters"] = json!(file);
    document["private"] = training_report::document(private);
    context.output.result(&document, || {
        format!("{}\n\n{}", cluster_tables::of_tasks(clusters), training_report::text(experts))
    })?;
    training_report::outcome(experts)
}

/// The changed settings that this kind of training does not use.
fn unused(mode: &TrainMode, settings: &TrainConfig) -> Result<Vec<&'static str>> {
    let unused: Vec<&str> = match mode {
        TrainMode { full: true, .. } => [&LORA_SETTINGS[..], &SKILL_SETTINGS].concat(),
        TrainMode { poly: Some(_), .. } => vec!["splits"],
        TrainMode { mhr: Some(_), .. } => Vec::new(),
        _ => SKILL_SETTINGS.to_vec(),
    };
    let (given, default) = (serde_json::to_value(settings)?, serde_json::to_value(TrainConfig::default())?);
    Ok(unused.into_iter().filter(|name| given[*name] != default[*name]).collect())
}

/// The experts to train.
fn plans<'a>(args: &TrainExpertsArgs, tasks: &'a [Task], context: &CommandContext) -> Result<Vec<TrainingPlan<'a>>> {
    let mode = &args.mode;
    if let Some(path) = &mode.clusters {
        let clusters = Clusters::read(path)?;
        let library = Library::open_if_exists(&args.library)?;
        let plans = of_clusters(&clusters, &path.display().to_string(), tasks, library.as_ref())?;
        warn_of_tasks_left_out(path, &plans, tasks, context);
        return Ok(plans);
    }
    Ok(match mode {
        TrainMode { joint: true, .. } => vec![joint(tasks)],
        TrainMode { full: true, .. } => vec![TrainingPlan::new(FULL, tasks.iter().collect())],
        TrainMode { poly: Some(_), .. } => vec![TrainingPlan::new("poly", tasks.iter().collect())],
        TrainMode { mhr: Some(_), .. } => vec![TrainingPlan::new("mhr", tasks.iter().collect())],
        TrainMode { random_examples: Some(parts), .. } => random_examples(tasks, parts.get())?,
        _ => private(tasks),
    })
}

/// Warns of tasks that are in none of the clusters at `path`, and so are not trained on.
fn warn_of_tasks_left_out(path: &Path, plans: &[TrainingPlan], tasks: &[Task], context: &CommandContext) {
    let is_planned = |task: &Task| plans.iter().any(|plan| plan.tasks.iter().any(|other| other.name == task.name));
    let left_out: Vec<String> =
        tasks.iter().filter(|task| !is_planned(task)).map(|task| format!("`{}`", task.name)).collect();
    if !left_out.is_empty() {
        context.output.warn(format!(
            "no expert is trained on {} of --tasks, in no cluster of {}: {}",
            pluralize(left_out.len(), "task"),
            path.display(),
            left_out.join(", ")
        ));
    }
}

/// Warns where the library has experts that started from another A, as far as the first that records a seed says: of a
/// large library, reading all records takes long.
fn warn_of_other_seed(
    kind: TrainedKind,
    library: &Library,
    plans: &[TrainingPlan],
    context: &CommandContext,
) -> Result<()> {
    // Neither a model nor skills share the experts' A.
    if !matches!(kind, TrainedKind::Experts) {
        return Ok(());
    }
    for name in library.expert_names()?.iter().filter(|name| plans.iter().all(|plan| plan.name != **name)) {
        let Some(seed) = library.record(name)?.and_then(|record| record.initial_seed) else { continue };
        if seed != context.seed {
            context.output.warn(format!(
                "{}: its expert `{name}` was initialized with seed {seed}, and --seed is {}: clusters would follow the seeds, \
                 and methods that sum A and B separately need a common initial A",
                library.root().display(),
                context.seed
            ));
        }
        break;
    }
    Ok(())
}

/// The experts selected by `--experts`.
fn selected<'a>(plans: Vec<TrainingPlan<'a>>, names: &[String]) -> Result<Vec<TrainingPlan<'a>>> {
    if let Some(unknown) = names.iter().find(|name| plans.iter().all(|plan| plan.name != **name)) {
        let known: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
        bail!("--experts: unknown expert `{unknown}`; expected one of {}", known.join(", "));
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

    #[test]
    fn help_states_the_defaults() {
        let stated = |text: &str| {
            let (name, values) = text.trim_end_matches(',').split_once('=')?;
            // The default is the first of several values.
            Some(format!("{name}={}", values.split('|').next()?))
        };
        let stated: Vec<String> = SETTINGS.split_whitespace().filter_map(stated).collect();
        assert!(stated.len() > 20, "{stated:?}");
        for assignment in stated {
            let mut config = TrainConfig::default();
            config.set(&assignment).unwrap_or_else(|error| panic!("{assignment}: {error}"));
            assert_eq!(config, TrainConfig::default(), "{assignment}");
        }
    }
}
