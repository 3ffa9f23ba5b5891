//! `eval`: scores routers over one library on tasks.

use crate::base_source::BaseSource;
use crate::context::Context;
use crate::experts::{self, Opened};
use crate::interrupt::Interrupted;
use crate::output::{ABSENT, counted, table};
use crate::progress;
use crate::routing::{Filling, FitArgs, Routing};
use crate::slots;
use crate::tasks::{self, TaskArgs};
use crate::typed::Typed;
use crate::usage::{self, count};
use anyhow::{Context as _, Error, Result, ensure};
use clap::Args;
use lorakit_adapter::persist::write_file;
use lorakit_adapter::{Library, Patches};
use lorakit_eval::{Model, Options, Results, Score, Scores, TaskResult, evaluate, samples_file, samples_jsonl};
use lorakit_model::Base;
use lorakit_route::Router;
use lorakit_task::{Metric, Split, Task};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

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
    let options = Options { split: args.split, limit: args.limit.map(NonZeroUsize::get), ..Options::default() };
    let data = args.tasks.data.data.as_deref();
    let fit = args.fit.load(data)?;
    if args.split != Split::All {
        let pairs = tasks.iter().flat_map(|task| fit.iter().map(move |fit| (task, fit)));
        pairs.into_iter().try_for_each(|(task, fit)| tasks::ensure_apart(task, fit))?;
    }
    let mut failures = Failures::default();
    // What cannot be scored is found before anything slow begins.
    let mut tasks = failures.with_rows(tasks, &options, context)?;
    if !args.metrics.is_empty() {
        tasks.iter_mut().for_each(|task| task.metrics.retain(|metric| args.metrics.contains(metric)));
    }
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
    let lineup = lineup(&routers, &tasks, routing.as_ref(), &mut failures, context)?;
    let config = config(&args, &routers, &tasks, routing.as_ref(), &base, context.seed);
    let mut store = Store::open(&args, &routers, &tasks, config, context)?;
    let bar = progress::bar(&context.output, (routers.len() * tasks.len()) as u64, "eval");
    for (router, line) in routers.iter().zip(&lineup) {
        for (index, task) in tasks.iter().enumerate() {
            let Some(Filling { patches, templates }) = line.of(index) else {
                bar.inc(1);
                continue;
            };
            let model = Model { base: &base, vocabulary: &vocabulary, patches, templates: templates.as_ref() };
            let scores = evaluate(&model, task, &options, &mut |rows| {
                bar.set_message(format!("{} on {}, {} of {} rows,", router.text, task.name, rows.done, rows.total));
            });
            match scores {
                Ok(scores) => store.keep(&router.text, &task.name, &scores)?,
                Err(error) => bar.suspend(|| failures.add(Some(&router.text), &task.name, error, context))?,
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    if store.now.routers().next().is_none() {
        return failures.outcome();
    }
    let mut document = serde_json::to_value(&store.now)?;
    if !failures.0.is_empty() {
        document["errors"] = json!(failures.0);
    }
    context.output.result(&document, || tables(&store.now, &routers, &tasks))?;
    failures.outcome()
}

/// What could not be scored. It does not keep the rest from being scored.
#[derive(Default)]
struct Failures(Vec<Failure>);

/// One task that could not be scored.
#[derive(Serialize)]
struct Failure {
    /// Under this router; none: under any.
    router: Option<String>,
    task: String,
    error: String,
}

impl Failures {
    /// Takes an error of a task down, unless it is the user's wish to stop.
    fn add(&mut self, router: Option<&str>, task: &str, error: Error, context: &Context) -> Result<()> {
        if error.is::<Interrupted>() {
            return Err(error);
        }
        let failure = Failure { router: router.map(str::to_owned), task: task.to_owned(), error: format!("{error:#}") };
        context.output.notice(failure.told());
        self.0.push(failure);
        Ok(())
    }

    /// The tasks that have rows to be scored. Where none has, the first reason is the command's.
    fn with_rows(&mut self, tasks: Vec<Task>, options: &Options, context: &Context) -> Result<Vec<Task>> {
        let (mut fit, mut errors) = (Vec::new(), Vec::new());
        for task in tasks {
            match task.rows(options.split, options.limit).map(|_| ()) {
                Ok(()) => fit.push(task),
                Err(error) => errors.push((task.name, error)),
            }
        }
        if fit.is_empty() && !errors.is_empty() {
            return Err(errors.swap_remove(0).1);
        }
        errors.into_iter().try_for_each(|(task, error)| self.add(None, &task, error, context))?;
        Ok(fit)
    }

    /// How the command ends.
    fn outcome(&self) -> Result<()> {
        let told: Vec<String> = self.0.iter().map(Failure::told).collect();
        let many = counted(told.len(), "score");
        ensure!(told.is_empty(), "{many} could not be had, and the rest is there: {}", told.join("; "));
        Ok(())
    }
}

impl Failure {
    fn told(&self) -> String {
        let router = self.router.as_ref().map_or_else(String::new, |router| format!("--router {router}, "));
        format!("{router}task `{}`: {}", self.task, self.error)
    }
}

/// The routers in the order typed, each once.
fn distinct(typed: &[Typed]) -> Vec<Typed> {
    let mut seen = BTreeSet::new();
    typed.iter().filter(|router| seen.insert(router.text.clone())).cloned().collect()
}

impl EvalArgs {
    /// Refuses what cannot be meant, before anything is opened.
    fn ensure_usage(&self) -> Result<()> {
        let needy = self.router.iter().find(|typed| typed.router != Router::Base && self.library.is_none());
        needy.map_or(Ok(()), |typed| Err(usage::wrong(format!("--router {typed} needs --library"))))
    }
}

/// The library, where a router needs one. One that none needs must be there all the same, or its name is a slip.
fn library(args: &EvalArgs, routers: &[Typed], base: &Base) -> Result<Option<Opened>> {
    let Some(root) = &args.library else { return Ok(None) };
    if routers.iter().all(|typed| typed.router == Router::Base) {
        return Library::open(root).map(|_| None);
    }
    experts::open(root, base).map(Some)
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
    /// For each task its own; none where it could not be had.
    ByTask(Vec<Option<Filling<'a>>>),
}

impl<'a> Line<'a> {
    fn of(&self, task: usize) -> Option<&Filling<'a>> {
        match self {
            Self::Same(filling) => Some(filling),
            Self::ByTask(fillings) => fillings[task].as_ref(),
        }
    }
}

/// All routers, ready. One that cannot be built, for any task where it is another for each, fails before any is scored;
/// one that cannot for some is scored on the others.
fn lineup<'a>(
    routers: &[Typed],
    tasks: &[Task],
    routing: Option<&Routing<'_, 'a>>,
    failures: &mut Failures,
    context: &Context,
) -> Result<Vec<Line<'a>>> {
    let mut line = |Typed { router, text }: &Typed| -> Result<Line<'a>> {
        let Some(routing) = routing else { return Ok(Line::Same(Filling::plain(Patches::none()))) };
        if !routing.by_task(router) {
            return routing.fill(router, None, None).map(Line::Same);
        }
        let (mut fillings, mut errors) = (Vec::new(), Vec::new());
        for task in tasks {
            match routing.fill(router, Some(task), None) {
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
    /// What decided the others of results.json.
    earlier: Vec<Earlier>,
    log_samples: bool,
}

/// Results of an earlier run that stay, with what decided them: an entry of `earlier` in the configuration.
#[derive(Deserialize, Serialize)]
struct Earlier {
    config: Value,
    versions: Value,
    /// The tasks by their routers.
    results: BTreeMap<String, BTreeSet<String>>,
}

impl Earlier {
    /// All that a file of results says of where they came from.
    fn of(file: &mut Results) -> Vec<Self> {
        let earlier = file.config.as_object_mut().and_then(|config| config.remove(EARLIER));
        let mut all: Vec<Self> = earlier.and_then(|earlier| serde_json::from_value(earlier).ok()).unwrap_or_default();
        let known = |router: &str, task: &String| all.iter().any(|of| of.has(router, task));
        let mut results = BTreeMap::new();
        for (router, tasks) in file.routers() {
            let own: BTreeSet<String> = tasks.keys().filter(|task| !known(router, task)).cloned().collect();
            results.insert(router.to_owned(), own);
        }
        all.push(Self { config: file.config.take(), versions: file.versions.take(), results });
        all
    }

    fn has(&self, router: &str, task: &String) -> bool {
        self.results.get(router).is_some_and(|tasks| tasks.contains(task))
    }

    /// Forgets a result, which another has replaced.
    fn forget(&mut self, router: &str, task: &str) {
        if let Some(tasks) = self.results.get_mut(router) {
            tasks.remove(task);
        }
        self.results.retain(|_, tasks| !tasks.is_empty());
    }
}

/// The key of the configuration under which results of earlier runs have theirs.
const EARLIER: &str = "earlier";

impl Store {
    fn open(args: &EvalArgs, routers: &[Typed], tasks: &[Task], config: Value, context: &Context) -> Result<Self> {
        let mut now = Results::default();
        (now.config, now.versions) = (config, json!({ "lorakit": env!("CARGO_PKG_VERSION") }));
        let Some(folder) = &args.out else {
            return Ok(Self { now, file: None, earlier: Vec::new(), log_samples: false });
        };
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
                "{}: results of other routers and tasks stay there, and came of other settings, which stay beside them",
                folder.display()
            ));
        }
        let earlier = Earlier::of(&mut file);
        file.merge(now.clone());
        Ok(Self { now, file: Some((folder.clone(), file)), earlier, log_samples: args.log_samples })
    }

    fn keep(&mut self, router: &str, task: &str, scores: &Scores) -> Result<()> {
        self.now.insert(router, task, scores);
        let Some((folder, results)) = &mut self.file else { return Ok(()) };
        if self.log_samples {
            write_file(&folder.join(samples_file(router, task)), samples_jsonl(&scores.samples)?.as_bytes())?;
        }
        results.insert(router, task, scores);
        self.earlier.iter_mut().for_each(|earlier| earlier.forget(router, task));
        self.earlier.retain(|earlier| !earlier.results.is_empty());
        results.config = self.now.config.clone();
        if !self.earlier.is_empty() {
            results.config[EARLIER] = serde_json::to_value(&self.earlier)?;
        }
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
