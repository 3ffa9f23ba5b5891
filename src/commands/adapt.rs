//! `adapt`: from a library to target tasks.

use crate::adapt::check;
use crate::adapt::compose::compose;
use crate::adapt::fits::Fits;
use crate::adapt::method::{METHODS, Method};
use crate::adapt::skills::{self, Fitting, Skills};
use crate::adapt::start;
use crate::base_source::BaseSource;
use crate::context::Context;
use crate::experts::{self, Opened};
use crate::interrupt::Interrupted;
use crate::lock::lock;
use crate::output::{counted, entry, number, table};
use crate::plan::{self, jobs};
use crate::settings::SettingArgs;
use crate::tasks::{self, TaskArgs};
use crate::training::{Made, World};
use crate::usage::{self, count};
use anyhow::{Context as _, Result, ensure};
use clap::Args;
use lorakit_adapter::Library;
use lorakit_eval::Results;
use lorakit_route::Composition;
use lorakit_task::Task;
use lorakit_train::{FitScope, Init, Job, TrainConfig};
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

/// The arguments of `adapt`.
#[derive(Args, Debug)]
#[command(after_help = methods())]
pub struct AdaptArgs {
    /// The base: a model folder, hub:ORG/NAME[@REV], or pico
    #[arg(long, value_name = "B")]
    base: BaseSource,
    #[command(flatten)]
    tasks: TaskArgs,
    /// The library to start from; every method but no_library needs it
    #[arg(long, value_name = "L")]
    library: Option<PathBuf>,
    /// Only these experts of the library [default: all]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', requires = "library")]
    experts: Vec<String>,
    /// How, with settings after a colon; all are listed below
    #[arg(long, value_name = "M")]
    method: Method,
    /// The share of each task's rows for training and validation that is used, the first of them
    #[arg(long, value_name = "F", default_value = "1")]
    fraction: Fraction,
    #[command(flatten)]
    settings: SettingArgs,
    /// Only the first test rows in the check of what came of it
    #[arg(long, value_name = "N", value_parser = count)]
    limit: Option<NonZeroUsize>,
    /// Make adapters anew that are there and came about otherwise
    #[arg(long)]
    restart: bool,
    /// The folder to be made: a library of one adapter per task, DIR/experts/TASK, which PEFT loads as it is
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// A share above zero, of one at most.
#[derive(Clone, Copy, Debug)]
struct Fraction(f64);

impl FromStr for Fraction {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let share = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
        share.map(Self).ok_or("expected a number above 0, and 1 at most")
    }
}

impl Fraction {
    /// So many of `count` rows: at least one, where there are any.
    fn of(self, count: usize) -> usize {
        // A little less, since 0.07 of 100 is 7.000000000000001.
        (self.0 * count as f64 - 1e-9).ceil() as usize
    }
}

/// A line for each method, for `--help`.
fn methods() -> String {
    let lines: Vec<String> = METHODS.iter().map(|(name, what)| entry(name, what)).collect();
    format!("Methods, with their settings and defaults:\n{}", lines.join("\n"))
}

/// What came of adapting.
struct Adapted {
    /// The tasks that are finished.
    finished: Vec<String>,
    /// What is told of them before the check.
    text: String,
    document: Value,
    outcome: Result<()>,
}

/// Adapts, checks and reports.
pub fn run(args: AdaptArgs, context: &Context) -> Result<()> {
    args.ensure_usage()?;
    let tasks = args.tasks.load()?;
    let place = args.base.locate(context)?;
    let (base, vocabulary) = (place.base(context)?, place.vocabulary()?);
    let opened = match (&args.library, args.method.needs_library()) {
        (Some(root), true) => Some(experts::open_some(root, &base, &args.experts)?),
        (None, true) => None,
        (given, false) => {
            if given.is_some() {
                context.output.notice(format!("--method {} starts from no library", args.method.name()));
            }
            None
        }
    };
    if let Some(opened) = &opened {
        ensure_unseen(&tasks, opened)?;
        ensure!(!same_folder(&args.out, opened), "{}: --out is the library itself", args.out.display());
    }
    // Whatever can be wrong with the method is found before anything is made.
    let way = args.way(opened.as_ref())?;
    let world = World { place: &place, base: &base, vocabulary: &vocabulary, restart: args.restart, context };
    let library = Library::open_or_create(&args.out, Some(base.identity()))?;
    let _lock = lock(&library, context)?;
    let adapted = args.adapt(way, &world, &tasks, &library)?;
    let finished: Vec<&Task> = tasks.iter().filter(|task| adapted.finished.contains(&task.name)).collect();
    let results = match &adapted.outcome {
        Err(error) if error.is::<Interrupted>() => Results::default(),
        _ => check::check(&world, &library, &finished, args.limit.map(NonZeroUsize::get))?,
    };
    let document = json!({
        "method": args.method.to_string(),
        "out": args.out,
        "adapted": adapted.document,
        "check": results,
    });
    context.output.result(&document, || {
        let end = format!("adapters are in {}", args.out.join("experts").display());
        format!("{}\n\n{}\n\n{end}", adapted.text, check::text(&results, &finished))
    })?;
    adapted.outcome
}

/// Refuses tasks of whose test rows an expert of the library may have seen some.
fn ensure_unseen(tasks: &[Task], opened: &Opened) -> Result<()> {
    for (expert, record) in opened.experts.names().iter().zip(&opened.records) {
        for (task, record) in tasks.iter().flat_map(|task| Some((task, record.as_ref()?))) {
            tasks::ensure_unseen(task, expert, record)?;
        }
    }
    Ok(())
}

fn same_folder(out: &std::path::Path, opened: &Opened) -> bool {
    matches!((out.canonicalize(), opened.library.root().canonicalize()), (Ok(a), Ok(b)) if a == b)
}

/// What a method does.
enum Way<'a> {
    /// Trains adapters, from a start where there is one.
    Train(Box<TrainConfig>, Option<Box<Init>>),
    /// Fits the routing of skills, and the skills or not.
    Route(Box<TrainConfig>, FitScope, Skills, &'a Opened),
    /// Weighs experts.
    Compose(&'a Composition, &'a Opened),
}

impl AdaptArgs {
    /// Refuses what cannot be meant, before anything is opened.
    fn ensure_usage(&self) -> Result<()> {
        let name = self.method.name();
        usage::ensure(self.library.is_some() || !self.method.needs_library(), || {
            format!("--method {name} needs --library")
        })?;
        let trains = !matches!(self.method, Method::Composition(_));
        usage::ensure(trains || !self.settings.are_given(), || {
            format!(
                "--set and --config are settings of training; those of {name} follow a colon, as in --method {}",
                self.method
            )
        })
    }

    fn way<'a>(&'a self, opened: Option<&'a Opened>) -> Result<Way<'a>> {
        let opened = || opened.context("the method needs --library");
        let start = match &self.method {
            Method::NoLibrary => None,
            Method::Mean => Some(start::mean(opened()?, self.settings.over(TrainConfig::default())?.rank)?),
            Method::Shared(name) => Some(start::shared(opened()?, name.as_deref())?),
            Method::Skills(tuned) => {
                let skills = Skills::of(opened()?)?;
                let settings = self.settings.over(skills.settings()?)?;
                return Ok(Way::Route(Box::new(settings), *tuned, skills, opened()?));
            }
            Method::Composition(composition) => {
                composition.check(&opened()?.experts)?;
                return Ok(Way::Compose(composition, opened()?));
            }
        };
        let settings = self.settings.over(start::settings(start.as_ref())?)?;
        if let Some(start) = &start {
            start::ensure_form(start, &settings)?;
        }
        Ok(Way::Train(Box::new(settings), start.map(Box::new)))
    }

    /// Makes an adapter for each task.
    fn adapt(&self, way: Way, world: &World, tasks: &[Task], out: &Library) -> Result<Adapted> {
        let plans = plan::private(tasks);
        let defaults = TrainConfig::default();
        let settings = match &way {
            Way::Train(settings, _) | Way::Route(settings, ..) => settings,
            Way::Compose(..) => &defaults,
        };
        let jobs = self.part(jobs(&plans, world.base, world.vocabulary, settings, world.context)?);
        match &way {
            Way::Compose(composition, opened) => Ok(composed(&compose(world, composition, opened, out, jobs))),
            Way::Route(settings, tuned, skills, opened) => {
                let unused = skills::unused(settings, &skills.settings()?).join(", ");
                if !unused.is_empty() {
                    let method = self.method.name();
                    world.context.output.notice(format!("--method {method} does not use the settings {unused}"));
                }
                let how = Fitting { world, opened, tuned: *tuned, settings };
                Ok(routed(&skills.adapt(&how, out, jobs)))
            }
            Way::Train(settings, start) => {
                let jobs = jobs.into_iter().map(|job| Job { start: start.as_deref().cloned(), ..job }).collect();
                let trained = world.train_jobs(Made::Experts, out, &plans, jobs, settings)?;
                Ok(Adapted {
                    finished: trained.finished().map(str::to_owned).collect(),
                    text: trained.table(),
                    document: trained.document(out)["experts"].clone(),
                    outcome: trained.outcome(),
                })
            }
        }
    }

    /// The share of the rows that is asked for.
    fn part(&self, jobs: Vec<Job>) -> Vec<Job> {
        let part = |mut job: Job| {
            job.train.truncate(self.fraction.of(job.train.len()));
            job.validation.truncate(self.fraction.of(job.validation.len()));
            job
        };
        jobs.into_iter().map(part).collect()
    }
}

/// What is told of a routing that was fitted.
fn routed(fits: &Fits) -> Adapted {
    let line = |(task, fit): &(String, Value)| {
        let losses = fit["train"].as_array().map_or(&[][..], Vec::as_slice);
        let loss = |loss: Option<&Value>| number(loss.and_then(Value::as_f64), 4);
        vec![task.clone(), losses.len().to_string(), loss(losses.first()), loss(losses.last())]
    };
    fitted(fits, table(["task", "steps", "first train loss", "last"], fits.finished.iter().map(line)))
}

/// What is told of weights.
fn composed(fits: &Fits) -> Adapted {
    let line = |(task, fit): &(String, Value)| {
        let losses = ["base", "fitted", "stderr"].map(|key| number(fit["held_out_loss"][key].as_f64(), 4));
        [vec![task.clone(), strongest(&fit["weights"])], losses.to_vec()].concat()
    };
    let header = ["task", "largest weights", "left-out loss of the base", "with the experts", "± of the difference"];
    fitted(fits, table(header, fits.finished.iter().map(line)))
}

fn fitted(fits: &Fits, text: String) -> Adapted {
    Adapted {
        finished: fits.finished.iter().map(|(task, _)| task.clone()).collect(),
        text,
        document: fits.document(),
        outcome: fits.outcome(),
    }
}

/// The experts of the largest weights, each with its mean over the groups.
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
        more => format!("{}, {}", shown.join(", "), counted(more, "other")),
    }
}
