//! `adapt`: adapts a library to target tasks.

use crate::args::row_encoding_args::PromptEncodingArgs;
use crate::args::task_args::{self, TaskArgs};
use crate::args::train_config_args::{TrainConfigArgs, ensure_rank, ensure_targets};
use crate::args::usage::{self, count};
use crate::base::base_source::BaseSource;
use crate::command_context::CommandContext;
use crate::encoding_check::EncodingCheck;
use crate::interrupt::Interrupted;
use crate::output::progress_bar;
use crate::output::score_tables::cell;
use crate::output::text_table::{help_entry, number, table};
use crate::output::training_report;
use crate::scoring::unseen_rows;
use anyhow::{Result, bail};
use clap::Args;
use lorakit_adapter::Library;
use lorakit_eval::Results;
use lorakit_fit::adapt::{
    ADAPT_METHODS, AdaptMethod, AdaptPlan, Adapted, COLUMNS, EvaluationEvent, Fraction, Outcomes, evaluate_adapted,
    parse_adapt_method,
};
use lorakit_fit::training::TrainContext;
use lorakit_fit::{lock_for, pluralize};
use lorakit_task::{Split, Task};
use lorakit_train::TrainConfig;
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

/// The arguments of `adapt`.
#[derive(Args, Debug)]
#[command(after_help = methods())]
pub struct AdaptArgs {
    /// Base model: a model folder, a GGUF file, hub:ORG/NAME[@REV][/FILE.gguf], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    tasks: TaskArgs,
    /// Library to start from; required by every method except no_library
    #[arg(long, value_name = "L")]
    library: Option<PathBuf>,
    /// Use only these experts of the library [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "library")]
    experts: Vec<String>,
    /// Method, with settings after a colon; all are listed below
    #[arg(long, value_name = "M", value_parser = parse_adapt_method)]
    method: Arc<dyn AdaptMethod>,
    /// Use only the first fraction F of each task's training and validation rows
    #[arg(long, value_name = "F", default_value = "1")]
    fraction: Fraction,
    #[command(flatten)]
    settings: TrainConfigArgs,
    #[command(flatten)]
    encoding: PromptEncodingArgs,
    /// Evaluate the result on at most N test rows per task
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<NonZeroUsize>,
    /// Retrain adapters made with different settings
    #[arg(long)]
    restart: bool,
    /// Output library, with one PEFT adapter per task in DIR/experts/TASK
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// The list of methods for `--help`.
fn methods() -> String {
    let lines: Vec<String> =
        ADAPT_METHODS.iter().map(|method| help_entry(&method.usage(), &method.description())).collect();
    format!("Methods, with their settings and defaults:\n{}", lines.join("\n"))
}

/// The report of the adapted tasks before their evaluation.
struct Report {
    /// The tasks that are finished.
    finished: Vec<String>,
    text: String,
    document: Value,
    outcome: Result<()>,
}

/// Adapts, evaluates and reports.
pub fn run(args: AdaptArgs, context: &CommandContext) -> Result<()> {
    args.ensure_usage()?;
    let tasks = args.tasks.load(context)?;
    task_args::warn_of_unused(&tasks, context);
    let resolved = args.base.resolve(context)?;
    let encoding = args.config_over(TrainConfig::default())?.row_encoding();
    let (base, tokenizer) = (resolved.base(context)?, resolved.tokenizer()?.with_encoding(encoding));
    let opened = match (&args.library, args.method.info().needs_library) {
        (Some(root), true) => Some(context.open_library(root, &base, &args.experts)?),
        (None, true) => None,
        (given, false) => {
            if given.is_some() {
                context.output.warn(format!("--method {} does not use --library", args.method.info().name));
            }
            None
        }
    };
    if let Some(opened) = &opened {
        unseen_rows::ensure_unseen(&tasks, Split::Test, &unseen_rows::experts(opened), context)?;
        EncodingCheck::of(opened, |_| true).warn_of_tasks(&tasks, "fitted to", &tokenizer, context);
        usage::ensure(!usage::is_same_file(&args.out, opened.library.root()), || {
            format!("{}: --out and --library are the same folder", args.out.display())
        })?;
    }
    let settings = |defaults| args.config_over(defaults).map_err(Into::into);
    let plan = AdaptPlan::new(&*args.method, opened.as_ref(), &settings)?;
    if args.method.info().uses_train_config {
        ensure_targets(plan.config(), &base)?;
        ensure_rank(plan.config(), &base, context)?;
    }
    let unused = args.settings.unused(plan.config())?.join(", ");
    if !unused.is_empty() {
        context.output.warn(format!("unused settings: {unused}"));
    }
    let train = TrainContext {
        base: &base,
        tokenizer: &tokenizer,
        seed: context.seed,
        restart: args.restart,
        part: None,
        reporter: context,
    };
    let library = Library::open_or_create(&args.out, Some(base.identity()))?;
    let library = library.guarded_by(&[&lock_for(&library, &base, context)?]);
    let report = report(&plan.adapt(&train, &tasks, args.fraction, &library)?);
    let finished: Vec<&Task> = tasks.iter().filter(|task| report.finished.contains(&task.name)).collect();
    let results = match &report.outcome {
        Err(error) if error.is::<Interrupted>() => Results::default(),
        _ => evaluate(&train, &library, &finished, args.limit.map(NonZeroUsize::get), context)?,
    };
    let document = json!({
        "method": args.method.to_string(),
        "out": args.out,
        "adapted": report.document,
        "check": results,
    });
    context.output.result(&document, || {
        let end = format!("The adapters are in {}", args.out.join("experts").display());
        format!("{}\n\n{}\n\n{end}", report.text, scores(&results, &finished))
    })?;
    report.outcome
}

impl AdaptArgs {
    /// Checks what needs no file to be opened.
    fn ensure_usage(&self) -> Result<()> {
        let method = self.method.info();
        let name = method.name;
        usage::ensure(self.library.is_some() || !method.needs_library, || format!("--method {name} needs --library"))?;
        usage::ensure(method.uses_train_config || !self.settings.are_given(), || {
            format!(
                "--set and --config are settings of training, and {name} trains nothing; its own settings follow a colon, as in \
                 --method {}, and --chat and --bos say how rows become tokens",
                self.method
            )
        })
    }

    /// The settings of training over `defaults`.
    fn config_over(&self, defaults: TrainConfig) -> Result<TrainConfig> {
        let mut config = self.settings.over(defaults)?;
        let PromptEncodingArgs { chat, bos } = self.encoding;
        config.chat |= chat;
        config.bos = bos.unwrap_or(config.bos);
        Ok(config)
    }
}

/// Evaluates the adapted tasks under a progress bar.
fn evaluate(
    train: &TrainContext,
    library: &Library,
    tasks: &[&Task],
    limit: Option<usize>,
    context: &CommandContext,
) -> Result<Results> {
    let bar = progress_bar::bar(&context.output, (COLUMNS.len() * tasks.len()) as u64, "eval");
    let results = evaluate_adapted(train, library, tasks, limit, &mut |event| match event {
        EvaluationEvent::Started { column, task } => bar.set_message(format!("{column} on {task},")),
        EvaluationEvent::Finished => bar.inc(1),
        EvaluationEvent::Skipped { task, error } => {
            bar.suspend(|| context.output.warn(format!("task `{task}` is not evaluated: {}", error.chain())));
            bar.inc(COLUMNS.len() as u64);
        }
    })?;
    bar.finish_and_clear();
    Ok(results)
}

/// A row per task and metric.
fn scores(results: &Results, tasks: &[&Task]) -> String {
    let mut lines = Vec::new();
    for task in tasks {
        let Some(adapted) = results.get(COLUMNS[1], &task.name) else { continue };
        for metric in adapted.metrics.keys() {
            let score = |column: &str| results.get(column, &task.name)?.metrics.get(metric).copied();
            let scores = COLUMNS.map(|column| cell(score(column)));
            lines.push([task.name.clone(), metric.clone(), adapted.n.to_string()].into_iter().chain(scores).collect());
        }
    }
    table(["task", "metric", "test rows", COLUMNS[0], COLUMNS[1]], lines)
}

/// The report of adapting.
fn report(adapted: &Adapted) -> Report {
    match adapted {
        Adapted::Trained(report) => Report {
            finished: report.finished().map(str::to_owned).collect(),
            text: training_report::text(report),
            document: training_report::document(report)["experts"].clone(),
            outcome: training_report::outcome(report),
        },
        Adapted::Routed(outcomes) => routed(outcomes),
        Adapted::Weighted(outcomes) => weighted(outcomes),
    }
}

/// Fitted routings.
fn routed(fits: &Outcomes) -> Report {
    let line = |(task, fit): &(String, Value)| {
        let losses = fit["train"].as_array().map_or(&[][..], Vec::as_slice);
        let loss = |loss: Option<&Value>| number(loss.and_then(Value::as_f64), 4);
        vec![task.clone(), losses.len().to_string(), loss(losses.first()), loss(losses.last())]
    };
    fitted(fits, table(["task", "steps", "first train loss", "last train loss"], fits.finished.iter().map(line)))
}

/// Fitted weights.
fn weighted(fits: &Outcomes) -> Report {
    let line = |(task, fit): &(String, Value)| {
        let losses = ["base", "fitted", "stderr"].map(|key| number(fit["held_out_loss"][key].as_f64(), 4));
        [vec![task.clone(), strongest(&fit["weights"])], losses.to_vec()].concat()
    };
    let header = ["task", "largest weights", "held-out loss: base", "with experts", "± of the difference"];
    fitted(fits, table(header, fits.finished.iter().map(line)))
}

fn fitted(fits: &Outcomes, text: String) -> Report {
    Report {
        finished: fits.finished.iter().map(|(task, _)| task.clone()).collect(),
        text,
        document: fits.document(),
        outcome: outcome(fits),
    }
}

/// The outcome of the command.
fn outcome(fits: &Outcomes) -> Result<()> {
    if fits.failed.is_empty() {
        return Ok(());
    }
    let each: Vec<String> = fits.failed.iter().map(|(task, error)| format!("`{task}`: {}", error.chain())).collect();
    bail!("{} failed, the finished ones are complete: {}", pluralize(each.len(), "task"), each.join("; "))
}

/// The experts with the largest weights, averaged over groups.
fn strongest(weights: &Value) -> String {
    let groups: Vec<_> = weights.as_object().into_iter().flat_map(|groups| groups.values()).collect();
    let names = groups.first().and_then(|group| group.as_object()).into_iter().flat_map(|group| group.keys());
    let mean = |name: &String| {
        groups.iter().filter_map(|group| group[name].as_f64()).sum::<f64>() / groups.len().max(1) as f64
    };
    let mut all: Vec<(f64, &String)> = names.map(|name| (mean(name), name)).filter(|(mean, _)| *mean != 0.0).collect();
    all.sort_by(|a, b| b.0.abs().total_cmp(&a.0.abs()));
    let shown: Vec<String> = all.iter().take(3).map(|(mean, name)| format!("{mean:.2} {name}")).collect();
    match all.len().saturating_sub(shown.len()) {
        0 if shown.is_empty() => "none".to_owned(),
        0 => shown.join(", "),
        more => format!("{}, {}", shown.join(", "), pluralize(more, "other")),
    }
}
