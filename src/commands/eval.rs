//! `eval`: scores routers over one library on tasks.

use crate::base_source::BaseSource;
use crate::context::Context;
use crate::experts::{self, Opened};
use crate::output::{ABSENT, table};
use crate::progress;
use crate::routing::{Filling, FitArgs, Routing};
use crate::slots;
use crate::tasks::{self, TaskArgs};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_adapter::Patches;
use lorakit_adapter::persist::write_file;
use lorakit_eval::{Model, Options, Results, Score, Scores, TaskResult, evaluate, samples_file, samples_jsonl};
use lorakit_model::Base;
use lorakit_route::{RouteError, Router};
use lorakit_task::{Metric, Split, Task};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The arguments of `eval`.
#[derive(Args, Debug)]
#[command(after_help = slots::routers())]
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
    router: Vec<Typed>,
    #[command(flatten)]
    fit: FitArgs,
    /// A folder for results.json; results of the same routers and tasks are replaced there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Only the first rows of the split
    #[arg(long, value_name = "N")]
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

/// A router with the text that it was typed as, which keys its results.
#[derive(Clone, Debug)]
struct Typed {
    text: String,
    router: Router,
}

impl FromStr for Typed {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        Ok(Self { text: text.to_owned(), router: text.parse()? })
    }
}

/// Scores every router on every task.
pub fn run(args: EvalArgs, context: &Context) -> Result<()> {
    let mut tasks = args.tasks.load()?;
    if !args.metrics.is_empty() {
        tasks.iter_mut().for_each(|task| task.metrics.retain(|metric| args.metrics.contains(metric)));
    }
    let options = Options { split: args.split, limit: args.limit.map(NonZeroUsize::get), ..Options::default() };
    let data = args.tasks.data.data.as_deref();
    let fit = args.fit.load(data)?;
    if args.split != Split::All {
        let pairs = tasks.iter().flat_map(|task| fit.iter().map(move |fit| (task, fit)));
        pairs.into_iter().try_for_each(|(task, fit)| tasks::ensure_apart(task, fit))?;
    }
    // What cannot be scored is found before anything slow begins.
    tasks.iter().try_for_each(|task| task.rows(options.split, options.limit).map(|_| ()))?;
    let routers = distinct(&args.router);
    let place = args.base.locate(context)?;
    let (base, vocabulary) = (place.base(context)?, place.vocabulary()?);
    if let (Some(record), false) = (experts::record_of_model(&place)?, args.split == Split::All) {
        tasks.iter().try_for_each(|task| tasks::ensure_unseen(task, &args.base.to_string(), &record))?;
    }
    let opened = library(&args, &routers, &base)?;
    if let Some(opened) = &opened {
        ensure_unseen(&tasks, opened, args.split)?;
    }
    let routing =
        opened.as_ref().map(|opened| Routing { base: &base, place: &place, opened, fit: &fit, data, context });
    let lineup = lineup(&routers, &tasks, routing.as_ref())?;
    let config = config(&args, &routers, &tasks, routing.as_ref(), &base, context.seed);
    let mut store = Store::open(&args, &routers, &tasks, config, context)?;
    let bar = progress::bar(&context.output, (routers.len() * tasks.len()) as u64, "eval");
    for (router, line) in routers.iter().zip(&lineup) {
        for (index, task) in tasks.iter().enumerate() {
            let Filling { patches, templates } = line.of(index);
            let model = Model { base: &base, vocabulary: &vocabulary, patches, templates: templates.as_ref() };
            let scores = evaluate(&model, task, &options, &mut |rows| {
                bar.set_message(format!("{} on {}, {} of {} rows,", router.text, task.name, rows.done, rows.total));
            })
            .with_context(|| format!("router {}", router.text))?;
            store.keep(&router.text, &task.name, &scores)?;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    context.output.result(&store.now, || tables(&store.now, &routers, &tasks))
}

/// The routers in the order typed, each once.
fn distinct(typed: &[Typed]) -> Vec<Typed> {
    let mut seen = BTreeSet::new();
    typed.iter().filter(|router| seen.insert(router.text.clone())).cloned().collect()
}

/// The library, where there is one or a router needs one.
fn library(args: &EvalArgs, routers: &[Typed], base: &Base) -> Result<Option<Opened>> {
    match (&args.library, routers.iter().find(|typed| typed.router != Router::Base)) {
        (Some(root), Some(_)) => experts::open(root, base).map(Some),
        (_, None) => Ok(None),
        (None, Some(typed)) => Err(anyhow::anyhow!("--router {} needs --library", typed.text)),
    }
}

/// Refuses tasks of which an expert may have been trained on the rows to be scored.
fn ensure_unseen(tasks: &[Task], opened: &Opened, split: Split) -> Result<()> {
    if split == Split::All {
        return Ok(());
    }
    for (expert, record) in opened.experts.names().iter().zip(&opened.records) {
        for (task, record) in tasks.iter().flat_map(|task| Some((task, record.as_ref()?))) {
            tasks::ensure_unseen(task, expert, record)?;
        }
    }
    Ok(())
}

/// A router, ready to be scored.
enum Line<'a> {
    /// The same for every task.
    Same(Filling<'a>),
    /// For each task its own.
    ByTask(Vec<Filling<'a>>),
}

impl<'a> Line<'a> {
    fn of(&self, task: usize) -> &Filling<'a> {
        match self {
            Self::Same(filling) => filling,
            Self::ByTask(fillings) => &fillings[task],
        }
    }
}

/// All routers, ready; one that cannot be built fails before any is scored.
fn lineup<'a>(routers: &[Typed], tasks: &[Task], routing: Option<&Routing<'_, 'a>>) -> Result<Vec<Line<'a>>> {
    let line = |Typed { router, .. }: &Typed| -> Result<Line<'a>> {
        let Some(routing) = routing else { return Ok(Line::Same(Filling::plain(Patches::none()))) };
        if routing.by_task(router) {
            return tasks
                .iter()
                .map(|task| routing.fill(router, Some(task), None))
                .collect::<Result<_>>()
                .map(Line::ByTask);
        }
        routing.fill(router, None, None).map(Line::Same)
    };
    routers.iter().map(|typed| line(typed).with_context(|| format!("--router {}", typed.text))).collect()
}

/// What decided the scores.
fn config(
    args: &EvalArgs,
    routers: &[Typed],
    tasks: &[Task],
    routing: Option<&Routing>,
    base: &Base,
    seed: u64,
) -> Value {
    let (opened, fit) = (routing.map(|routing| routing.opened), routing.map_or(&[][..], |routing| routing.fit));
    let typed: BTreeMap<&str, String> =
        routers.iter().map(|typed| (typed.text.as_str(), typed.router.to_string())).collect();
    let experts = opened.map(|opened| opened.experts.names());
    json!({
        "base": { "name": base.identity().name, "fingerprint": base.identity().fingerprint },
        "experts": experts,
        "fit": fit.iter().map(tasks::document).collect::<Vec<_>>(),
        "library": args.library,
        "limit": args.limit,
        "routers": typed,
        "seed": seed,
        "split": args.split,
        "tasks": tasks.iter().map(tasks::document).collect::<Vec<_>>(),
    })
}

/// The scores so far, on disk after every task: an interruption loses only the one at hand.
struct Store {
    /// Those of this run.
    now: Results,
    /// Those of results.json, where there is one.
    file: Option<(PathBuf, Results)>,
    log_samples: bool,
}

impl Store {
    fn open(args: &EvalArgs, routers: &[Typed], tasks: &[Task], config: Value, context: &Context) -> Result<Self> {
        let mut now = Results::default();
        (now.config, now.versions) = (config, json!({ "lorakit": env!("CARGO_PKG_VERSION") }));
        let Some(folder) = &args.out else { return Ok(Self { now, file: None, log_samples: false }) };
        if args.log_samples {
            let pairs =
                routers.iter().flat_map(|router| tasks.iter().map(move |task| samples_file(&router.text, &task.name)));
            let mut names = BTreeSet::new();
            let twice = pairs.into_iter().find(|name| !names.insert(name.clone()));
            ensure!(
                twice.is_none(),
                "two sets of samples would be written to {}; give a task another name: NAME=FILE",
                twice.unwrap_or_default()
            );
        }
        std::fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
        let mut file = read_before(&folder.join("results.json"))?;
        if file.routers().next().is_some() && !comparable(&file.config, &now.config) {
            context.output.notice(format!(
                "{}: results of other routers and tasks stay there, and came of other settings",
                folder.display()
            ));
        }
        file.merge(now.clone());
        Ok(Self { now, file: Some((folder.clone(), file)), log_samples: args.log_samples })
    }

    fn keep(&mut self, router: &str, task: &str, scores: &Scores) -> Result<()> {
        self.now.insert(router, task, scores);
        let Some((folder, results)) = &mut self.file else { return Ok(()) };
        if self.log_samples {
            write_file(&folder.join(samples_file(router, task)), samples_jsonl(&scores.samples)?.as_bytes())?;
        }
        results.insert(router, task, scores);
        write_file(&folder.join("results.json"), results.to_json()?.as_bytes())
    }
}

/// The results of an earlier run; none where there is no file.
fn read_before(path: &Path) -> Result<Results> {
    match std::fs::read_to_string(path) {
        Ok(text) => Results::parse(&text)
            .with_context(|| format!("{}: in the way; move it, or give another --out", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Results::default()),
        Err(error) => Err(error).with_context(|| format!("{}: cannot be read", path.display())),
    }
}

/// Whether two runs scored the same base and experts on the same kind of rows.
fn comparable(before: &Value, now: &Value) -> bool {
    let base_alone = |config: &Value| config["experts"].is_null();
    ["base", "limit", "split"].iter().all(|key| before[key] == now[key])
        && (base_alone(before)
            || base_alone(now)
            || (before["experts"] == now["experts"] && before["library"] == now["library"]))
}

/// A table for each metric, tasks by routers, and one of means.
fn tables(results: &Results, routers: &[Typed], tasks: &[Task]) -> String {
    let found: BTreeSet<&str> = results
        .routers()
        .flat_map(|(_, tasks)| tasks.values())
        .flat_map(|result| result.metrics.keys().map(String::as_str))
        .collect();
    let place =
        |name: &&str| Metric::ALL.iter().position(|metric| name.starts_with(metric.name())).unwrap_or(usize::MAX);
    let mut metrics: Vec<&str> = found.into_iter().collect();
    metrics.sort_by_key(place);
    let mut texts: Vec<String> = metrics.iter().map(|metric| metric_table(metric, results, routers, tasks)).collect();
    if tasks.len() > 1 {
        texts.push(means(&metrics, results, routers, tasks));
    }
    texts.join("\n\n")
}

/// What a reader looks for first, and so comes last: every metric's mean over the tasks that have it.
fn means(metrics: &[&str], results: &Results, routers: &[Typed], tasks: &[Task]) -> String {
    let score =
        |metric: &str, router: &Typed, task: &Task| results.get(&router.text, &task.name)?.metrics.get(metric).copied();
    let line = |metric: &&str| {
        let scored = tasks.iter().filter(|task| routers.iter().any(|router| score(metric, router, task).is_some()));
        let cells =
            routers.iter().map(|router| cell(mean(tasks.iter().filter_map(|task| score(metric, router, task)))));
        [(*metric).to_owned(), scored.count().to_string()].into_iter().chain(cells).collect()
    };
    let header = ["mean over tasks", "tasks"].into_iter().chain(routers.iter().map(|router| router.text.as_str()));
    table(header, metrics.iter().map(line))
}

fn metric_table(metric: &str, results: &Results, routers: &[Typed], tasks: &[Task]) -> String {
    let score = |router: &Typed, task: &Task| results.get(&router.text, &task.name)?.metrics.get(metric).copied();
    let rows = |task: &Task| {
        routers
            .iter()
            .find_map(|router| results.get(&router.text, &task.name))
            .map(|result: &TaskResult| result.n.to_string())
    };
    let scored = tasks.iter().filter(|task| routers.iter().any(|router| score(router, task).is_some()));
    let line = |task: &Task| {
        let start = [task.name.clone(), rows(task).unwrap_or_default()];
        start.into_iter().chain(routers.iter().map(|router| cell(score(router, task)))).collect()
    };
    let header = [metric, "rows"].into_iter().chain(routers.iter().map(|router| router.text.as_str()));
    table(header, scored.map(line))
}

/// A score with its standard error, for tables.
pub fn cell(score: Option<Score>) -> String {
    match score {
        None => ABSENT.to_owned(),
        Some(Score { value, stderr: None }) => format!("{value:.4}"),
        Some(Score { value, stderr: Some(error) }) => format!("{value:.4} ±{error:.4}"),
    }
}

/// The mean over tasks, whose errors are independent: its standard error is the root of the sum of squares over n.
fn mean(scores: impl Iterator<Item = Score>) -> Option<Score> {
    let scores: Vec<Score> = scores.collect();
    let n = scores.len() as f64;
    let squares: Option<f64> = scores.iter().map(|score| score.stderr.map(|error| error * error)).sum();
    let value = scores.iter().map(|score| score.value).sum::<f64>() / n;
    (!scores.is_empty()).then(|| Score { value, stderr: squares.map(|sum| sum.sqrt() / n) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_over_tasks_has_the_error_of_independent_tasks() {
        let scores = [(1.0, Some(0.3)), (2.0, Some(0.4))].map(|(value, stderr)| Score { value, stderr });
        assert_eq!(mean(scores.into_iter()), Some(Score { value: 1.5, stderr: Some(0.25) }));
        assert_eq!(mean([Score { value: 1.0, stderr: None }].into_iter()), Some(Score { value: 1.0, stderr: None }));
        assert_eq!(mean([].into_iter()), None);
    }
}
