//! `train-experts`: one expert per task, per cluster of tasks, or one for all of them.

use crate::base_source::BaseSource;
use crate::context::Context;
use crate::interrupt::Interrupted;
use crate::output::{counted, number, table};
use crate::progress;
use crate::tasks::{self, TaskArgs};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use lorakit_adapter::{ExpertRecord, Library};
use lorakit_cluster::{Cluster, Clusters};
use lorakit_model::Base;
use lorakit_task::{Example, Split, Task, Vocabulary};
use lorakit_train::{Job, Options, Settings, Summary};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The arguments of `train-experts`.
#[derive(Args, Debug)]
pub struct TrainExpertsArgs {
    /// The base: a model folder or hub:ORG/NAME[@REV]
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    tasks: TaskArgs,
    /// The library that experts go to; made where there is none
    #[arg(long, value_name = "L")]
    library: PathBuf,
    /// One expert per cluster of clusters.json, on its tasks' rows together
    #[arg(long, value_name = "FILE", conflicts_with = "joint")]
    clusters: Option<PathBuf>,
    /// One expert, `joint`, on the rows of all tasks together
    #[arg(long)]
    joint: bool,
    /// Only these of the experts
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    experts: Vec<String>,
    /// Train experts anew that exist with other settings
    #[arg(long)]
    restart: bool,
    /// Settings of training, as TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, over those of --config
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// An expert to be trained: its name and tasks.
pub struct Plan<'a> {
    /// Its name.
    pub name: String,
    /// The tasks that it is trained on.
    pub tasks: Vec<&'a Task>,
}

/// An expert in the final table.
#[derive(Serialize)]
struct Row {
    expert: String,
    status: &'static str,
    tasks: Vec<String>,
    rows: usize,
    steps: usize,
    train_loss: Option<f64>,
    validation_loss: Option<f64>,
}

/// Trains the experts that are not there yet.
pub fn run(args: TrainExpertsArgs, context: &Context) -> Result<()> {
    let settings = settings(&args)?;
    context.output.detail(format!("settings: {}", serde_json::to_string(&settings)?));
    let tasks = args.tasks.load()?;
    let plans = chosen(plans(&args, &tasks)?, &args.experts)?;
    let place = args.base.locate(context)?;
    let (base, vocabulary) = (place.base(context)?, place.vocabulary()?);
    let jobs = jobs(&plans, &base, &vocabulary, &settings, context)?;
    let rows: Vec<usize> = jobs.iter().map(|job| job.train.len()).collect();

    let library = Library::open_or_create(&args.library, Some(base.identity()))?;
    let _lock = match library.try_lock()? {
        Some(lock) => lock,
        None => {
            context.output.status(format!("waiting for another process that changes {}", args.library.display()));
            library.lock()?
        }
    };
    let stop = context.interrupt.hold();
    let options = Options { seed: context.seed, restart: args.restart, stop };
    let mut progress = progress::Training::new(context.output);
    let summary =
        lorakit_train::train_experts(&base, &library, jobs, &settings, &options, &mut |event| progress.watch(event))?;
    progress.end();
    report(&library, &plans, &rows, &summary, context)?;
    outcome(&summary)
}

/// The settings: `--set` over the file over the defaults.
fn settings(args: &TrainExpertsArgs) -> Result<Settings> {
    let mut settings = match &args.config {
        None => Settings::default(),
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
            Settings::from_toml(&text, &path.display().to_string())?
        }
    };
    for assignment in &args.set {
        settings.set(assignment).with_context(|| format!("--set {assignment}"))?;
    }
    Ok(settings)
}

/// Which experts there are to be.
fn plans<'a>(args: &TrainExpertsArgs, tasks: &'a [Task]) -> Result<Vec<Plan<'a>>> {
    if args.joint {
        return Ok(vec![Plan { name: "joint".to_owned(), tasks: tasks.iter().collect() }]);
    }
    let Some(path) = &args.clusters else {
        return Ok(tasks.iter().map(|task| Plan { name: task.name.clone(), tasks: vec![task] }).collect());
    };
    let clusters = Clusters::read(path)?;
    let library = Library::open(&args.library).ok();
    let plan = |cluster: &Cluster| -> Result<Plan<'a>> {
        let names = task_names(cluster, library.as_ref())?;
        let find = |name: &String| {
            tasks.iter().find(|task| task.name == *name).with_context(|| {
                format!(
                    "{}: cluster `{}` has the task `{name}`, which --tasks does not give; add it, or name a task so \
                     with {name}=FILE",
                    path.display(),
                    cluster.name
                )
            })
        };
        Ok(Plan { name: cluster.name.clone(), tasks: names.iter().map(find).collect::<Result<_>>()? })
    };
    clusters.clusters().iter().map(plan).collect()
}

/// The tasks of a cluster: as the file lists them, else those that its experts were trained on, else, for experts of
/// which nothing is recorded, those of the same names.
fn task_names(cluster: &Cluster, library: Option<&Library>) -> Result<Vec<String>> {
    if !cluster.tasks.is_empty() {
        return Ok(cluster.tasks.clone());
    }
    let mut names = Vec::new();
    for expert in &cluster.experts {
        let record = match library.filter(|library| library.contains(expert)) {
            Some(library) => library.record(expert)?,
            None => None,
        };
        let own = record
            .map_or_else(|| vec![expert.clone()], |record| record.tasks.into_iter().map(|task| task.name).collect());
        names.extend(own);
    }
    names.sort();
    names.dedup();
    Ok(names)
}

/// The experts that `--experts` names; all where it names none.
fn chosen<'a>(plans: Vec<Plan<'a>>, names: &[String]) -> Result<Vec<Plan<'a>>> {
    if let Some(unknown) = names.iter().find(|name| plans.iter().all(|plan| plan.name != **name)) {
        let known: Vec<&str> = plans.iter().map(|plan| plan.name.as_str()).collect();
        bail!("--experts {unknown}: there is no such expert to be trained here; there are {}", known.join(", "));
    }
    Ok(plans.into_iter().filter(|plan| names.is_empty() || names.contains(&plan.name)).collect())
}

/// The experts with their rows as tokens. A task that several experts share is tokenised once.
pub fn jobs(
    plans: &[Plan],
    base: &Base,
    vocabulary: &Vocabulary,
    settings: &Settings,
    context: &Context,
) -> Result<Vec<Job>> {
    let length = settings.max_length.min(base.config().max_positions);
    let mut encoded: BTreeMap<&str, [Vec<Example>; 2]> = BTreeMap::new();
    for task in plans.iter().flat_map(|plan| &plan.tasks) {
        if !encoded.contains_key(task.name.as_str()) {
            encoded.insert(&task.name, rows(task, vocabulary, length, context)?);
        }
    }
    let job = |plan: &Plan| {
        let of = |split: usize| plan.tasks.iter().flat_map(|task| encoded[task.name.as_str()][split].clone()).collect();
        Job {
            name: plan.name.clone(),
            tasks: plan.tasks.iter().map(|task| tasks::record(task)).collect(),
            train: of(0),
            validation: of(1),
            start: None,
            sharers: 1,
        }
    };
    Ok(plans.iter().map(job).collect())
}

/// A task's rows for training and validation.
fn rows(task: &Task, vocabulary: &Vocabulary, length: usize, context: &Context) -> Result<[Vec<Example>; 2]> {
    let encode = |split: Split| -> Result<Vec<Example>> {
        if task.count(split) == 0 && split == Split::Validation {
            context.output.notice(format!("task `{}` has no validation rows to choose the best step by", task.name));
            return Ok(Vec::new());
        }
        let rows = task.rows(split, None)?;
        rows.into_iter()
            .map(|row| Example::encode(row, vocabulary, length))
            .collect::<Result<_>>()
            .with_context(|| format!("task `{}` ({})", task.name, task.path.display()))
    };
    let both = [encode(Split::Train)?, encode(Split::Validation)?];
    let cut = |part: fn(&Example) -> usize| both.iter().flatten().filter(|example| part(example) > 0).count();
    let (prompts, targets) = (cut(|example| example.cut.prompt), cut(|example| example.cut.target));
    if prompts > 0 {
        context.output.notice(format!(
            "task `{}`: {} longer than {length} tokens lost the beginning of the prompt",
            task.name,
            counted(prompts, "row")
        ));
    }
    if targets > 0 {
        context.output.notice(format!(
            "task `{}`: {} with a target longer than {length} tokens lost its end",
            task.name,
            counted(targets, "row")
        ));
    }
    Ok(both)
}

/// The final table, from what is recorded of the experts.
fn report(library: &Library, plans: &[Plan], rows: &[usize], summary: &Summary, context: &Context) -> Result<()> {
    let mut experts = Vec::new();
    for (plan, rows) in plans.iter().zip(rows) {
        let status = match &plan.name {
            name if summary.trained.contains(name) => "trained",
            name if summary.kept.contains(name) => "finished before",
            name if summary.failed.iter().any(|(failed, _)| failed == name) => "failed",
            _ => "unfinished",
        };
        let finished = matches!(status, "trained" | "finished before");
        let record = if finished { library.record(&plan.name)? } else { None };
        experts.push(row(plan, status, *rows, record.as_ref()));
    }
    // Where nothing had to be trained there is no run.
    let run = (!summary.folder.as_os_str().is_empty()).then_some(&summary.folder);
    let stopped = summary.stopped;
    let document = json!({ "library": library.root(), "run": run, "stopped": stopped, "experts": experts });
    context.output.result(&document, || {
        let cells = |row: &Row| {
            let (train, validation) = (number(row.train_loss, 4), number(row.validation_loss, 4));
            vec![
                row.expert.clone(),
                row.rows.to_string(),
                row.steps.to_string(),
                train,
                validation,
                row.status.to_owned(),
            ]
        };
        table(["expert", "rows", "steps", "train loss", "best validation loss", ""], experts.iter().map(cells))
    })
}

fn row(plan: &Plan, status: &'static str, rows: usize, record: Option<&ExpertRecord>) -> Row {
    let losses = record.map_or(&Value::Null, |record| &record.losses);
    Row {
        expert: plan.name.clone(),
        status,
        tasks: plan.tasks.iter().map(|task| task.name.clone()).collect(),
        rows,
        steps: losses["train"].as_array().map_or(0, Vec::len),
        train_loss: losses["train"].as_array().and_then(|losses| losses.last()?.as_f64()),
        validation_loss: losses["best"][1].as_f64(),
    }
}

/// How the command ends.
fn outcome(summary: &Summary) -> Result<()> {
    if summary.stopped {
        return Err(Interrupted(
            "finished experts are in the library; the same command again goes on from here".to_owned(),
        )
        .into());
    }
    let failed: Vec<String> = summary.failed.iter().map(|(name, why)| format!("`{name}` {why}")).collect();
    ensure!(failed.is_empty(), "{} failed: {}", counted(failed.len(), "expert"), failed.join("; "));
    Ok(())
}
