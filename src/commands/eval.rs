//! `eval`: scores routers over one library on tasks.

use crate::args::adapter_args;
use crate::args::router_arg::RouterArg;
use crate::args::task_args::{self, FitArgs, TaskArgs};
use crate::args::usage::{self, count};
use crate::base::base_source::BaseSource;
use crate::context::Context;
use crate::interrupt::Interrupted;
use crate::output::progress_bar;
use crate::output::score_tables::tables;
use crate::scoring::failures::Failures;
use crate::scoring::store::{Place, Store};
use anyhow::{Context as _, Result};
use clap::Args;
use lorakit_adapter::Library;
use lorakit_eval::{EvalOptions, PatchedModel, evaluate};
use lorakit_fit::router::{RoutedPatches, build_router, depends_on_task};
use lorakit_fit::{FitContext, OpenLibrary};
use lorakit_lora::Patches;
use lorakit_model::Base;
use lorakit_task::{Metric, Split, Task};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// The arguments of `eval`.
#[derive(Args, Debug)]
#[command(after_help = adapter_args::routers())]
pub struct EvalArgs {
    /// The base: a model folder, hub:ORG/NAME[@REV], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    /// The library of experts; every router but base needs it
    #[arg(long, value_name = "L")]
    library: Option<PathBuf>,
    #[command(flatten)]
    tasks: TaskArgs,
    /// Routers with their settings, such as base arrow:top_k=2; all are listed below
    #[arg(long, required = true, num_args = 1.., value_name = "R")]
    router: Vec<RouterArg>,
    #[command(flatten)]
    fit: FitArgs,
    /// A folder for results.json; results of the same routers and tasks are replaced there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only the first rows of the split
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<NonZeroUsize>,
    /// The rows that are scored
    #[arg(long, value_name = "train|validation|test|all", default_value_t = Split::Test)]
    split: Split,
    /// Only these of the metrics that the tasks ask for; the loss is always there
    #[arg(long, num_args = 1.., value_name = "loss|acc|exact_match|...")]
    metrics: Vec<Metric>,
    /// Write every row with its scores to samples_ROUTER_TASK.jsonl
    #[arg(long, requires = "out")]
    log_samples: bool,
}

/// Scores every router on every task.
pub fn run(args: EvalArgs, context: &Context) -> Result<()> {
    args.ensure_usage()?;
    let tasks = args.tasks.load()?;
    let options = EvalOptions { split: args.split, limit: args.limit.map(NonZeroUsize::get), ..EvalOptions::default() };
    let data = args.tasks.data.data.as_deref();
    let fit = args.fit.load(data)?;
    if args.split != Split::All {
        let pairs = tasks.iter().flat_map(|task| fit.iter().map(move |fit| (task, fit)));
        pairs.into_iter().try_for_each(|(task, fit)| task_args::ensure_apart(task, fit))?;
    }
    let mut failures = Failures::default();
    // What cannot be scored is found before anything slow begins.
    let mut tasks = failures.with_rows(tasks, &options, context)?;
    if !args.metrics.is_empty() {
        tasks.iter_mut().for_each(|task| task.metrics.retain(|metric| args.metrics.contains(metric)));
    }
    let routers = distinct(&args.router);
    if !fit.is_empty() && routers.iter().all(|typed| typed.router.training_data().is_none()) {
        context.output.warn("none of these routers learns anything, and --fit is not used");
    }
    let place = args.base.resolve(context)?;
    let (base, vocabulary) = (place.base(context)?, place.tokenizer()?);
    if let (Some(record), false) = (place.record()?, args.split == Split::All) {
        tasks.iter().try_for_each(|task| task_args::ensure_unseen(task, &args.base.to_string(), &record))?;
    }
    let opened = library(&args, &routers, &base)?;
    if let Some(opened) = &opened {
        ensure_unseen(&tasks, opened, args.split)?;
    }
    let tokenizer = || place.tokenizer();
    let routing = opened.as_ref().map(|library| FitContext {
        base: &base,
        library,
        tokenizer: &tokenizer,
        tasks: &fit,
        data,
        seed: context.seed,
        reporter: context,
    });
    let lineup = lineup(&routers, &tasks, routing.as_ref(), &mut failures, context)?;
    let config = config(&args, &routers, &tasks, routing.as_ref(), &base, context.seed);
    let kept = Place { folder: args.out.as_deref(), log_samples: args.log_samples };
    let mut store = Store::open(kept, &routers, &tasks, config, context)?;
    let bar = progress_bar::bar(&context.output, (routers.len() * tasks.len()) as u64, "eval");
    for (router, line) in routers.iter().zip(&lineup) {
        for (index, task) in tasks.iter().enumerate() {
            let Some(RoutedPatches { patches, templates }) = line.of(index) else {
                bar.inc(1);
                continue;
            };
            let model = PatchedModel { base: &base, tokenizer: &vocabulary, patches, routing: templates.as_ref() };
            let scores = evaluate(&model, task, &options, &mut |rows| {
                bar.set_message(format!("{} on {}, {} of {} rows,", router.text, task.name, rows.done, rows.total));
            });
            match scores {
                Ok(scores) => store.keep(&router.text, &task.name, &scores)?,
                Err(error) => bar.suspend(|| failures.add(Some(&router.text), &task.name, error.into(), context))?,
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if store.now.routers().next().is_none() {
        return failures.outcome();
    }
    let mut document = serde_json::to_value(&store.now)?;
    if !failures.all().is_empty() {
        document["errors"] = json!(failures.all());
    }
    context.output.result(&document, || tables(&store.now, &routers, &tasks))?;
    failures.outcome()
}

/// The routers in the order typed, each once.
fn distinct(typed: &[RouterArg]) -> Vec<RouterArg> {
    let mut seen = BTreeSet::new();
    typed.iter().filter(|router| seen.insert(router.text.clone())).cloned().collect()
}

impl EvalArgs {
    /// Refuses what cannot be meant, before anything is opened.
    fn ensure_usage(&self) -> Result<()> {
        let needy = self.router.iter().find(|typed| typed.router.uses_experts() && self.library.is_none());
        needy.map_or(Ok(()), |typed| Err(usage::wrong(format!("--router {typed} needs --library"))))
    }
}

/// The library, where a router needs one. One that none needs must be there all the same, or its name is a slip.
fn library(args: &EvalArgs, routers: &[RouterArg], base: &Base) -> Result<Option<OpenLibrary>> {
    let Some(root) = &args.library else { return Ok(None) };
    if routers.iter().all(|typed| !typed.router.uses_experts()) {
        Library::open(root)?;
        return Ok(None);
    }
    OpenLibrary::open(root, base, &[]).map(Some)
}

/// Refuses tasks of which an expert may have been trained on the rows to be scored.
fn ensure_unseen(tasks: &[Task], opened: &OpenLibrary, split: Split) -> Result<()> {
    if split == Split::All {
        return Ok(());
    }
    for (expert, record) in opened.experts.names().iter().zip(&opened.records) {
        for (task, record) in tasks.iter().flat_map(|task| Some((task, record.as_ref()?))) {
            task_args::ensure_unseen(task, expert, record)?;
        }
    }
    Ok(())
}

/// A router, ready to be scored.
enum Line<'a> {
    /// The same for every task.
    Same(RoutedPatches<'a>),
    /// For each task its own; none where it could not be had.
    ByTask(Vec<Option<RoutedPatches<'a>>>),
}

impl<'a> Line<'a> {
    fn of(&self, task: usize) -> Option<&RoutedPatches<'a>> {
        match self {
            Self::Same(filling) => Some(filling),
            Self::ByTask(fillings) => fillings[task].as_ref(),
        }
    }
}

/// All routers, ready. One that cannot be built, for any task where it is another for each, fails before any is scored;
/// one that cannot for some is scored on the others.
fn lineup<'a>(
    routers: &[RouterArg],
    tasks: &[Task],
    routing: Option<&FitContext<'_, 'a>>,
    failures: &mut Failures,
    context: &Context,
) -> Result<Vec<Line<'a>>> {
    let mut line = |RouterArg { router, text }: &RouterArg| -> Result<Line<'a>> {
        let Some(routing) = routing else { return Ok(Line::Same(RoutedPatches::plain(Patches::none()))) };
        if !depends_on_task(routing, &**router) {
            return build_router(routing, &**router, None, None).map(Line::Same);
        }
        let (mut fillings, mut errors) = (Vec::new(), Vec::new());
        for task in tasks {
            match build_router(routing, &**router, Some(task), None) {
                Ok(filling) => fillings.push(Some(filling)),
                Err(error) if error.is::<Interrupted>() => return Err(error),
                Err(error) => {
                    fillings.push(None);
                    errors.push((&task.name, error));
                }
            }
        }
        if errors.len() == tasks.len() {
            return Err(errors.swap_remove(0).1);
        }
        errors.into_iter().try_for_each(|(task, error)| failures.add(Some(text), task, error, context))?;
        Ok(Line::ByTask(fillings))
    };
    routers.iter().map(|typed| line(typed).with_context(|| format!("--router {typed}"))).collect()
}

/// What decided the scores.
fn config(
    args: &EvalArgs,
    routers: &[RouterArg],
    tasks: &[Task],
    routing: Option<&FitContext>,
    base: &Base,
    seed: u64,
) -> Value {
    let (opened, fit) = (routing.map(|routing| routing.library), routing.map_or(&[][..], |routing| routing.tasks));
    let typed: BTreeMap<&str, String> =
        routers.iter().map(|typed| (typed.text.as_str(), typed.router.to_string())).collect();
    let experts = opened.map(|opened| opened.experts.names());
    json!({
        "base": { "name": base.identity().name, "fingerprint": base.identity().fingerprint },
        "dtype": base.dtype_override().map(|dtype| dtype.as_str()),
        "experts": experts,
        "fit": fit.iter().map(task_args::document).collect::<Vec<_>>(),
        "library": args.library,
        "limit": args.limit,
        "routers": typed,
        "seed": seed,
        "split": args.split,
        "tasks": tasks.iter().map(task_args::document).collect::<Vec<_>>(),
    })
}
