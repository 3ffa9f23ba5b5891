//! Who is scored in the demo, and on what.

use super::method::Libraries;
use super::world::World;
use crate::context::Context;
use crate::output::{ABSENT, table};
use crate::progress;
use anyhow::{Context as _, Result};
use lorakit_eval::{EvalOptions, PatchedModel, Results, Score, evaluate};
use lorakit_fit::router::{build_router, depends_on_task};
use lorakit_fit::{FitContext, OpenLibrary};
use lorakit_lora::SequenceBatch;
use lorakit_route::{Router, Setting, Usage};
use lorakit_task::skills::{self, SkillFamily};
use lorakit_task::{Example, Split, Task};
use std::sync::Arc;

/// One line of the demo's table.
pub struct Contender {
    /// As it stands in the table and in results.json.
    pub label: &'static str,
    /// Its scores on the training tasks' test rows.
    pub training: Option<Summary>,
    /// Its scores on the held-out tasks.
    pub held_out: Option<Summary>,
}

/// Means over tasks, with standard errors from those of the tasks.
#[derive(Clone, Copy)]
pub struct Summary {
    /// The share of rows whose greedy answer is right.
    pub exact_match: Score,
    /// The mean negative log-likelihood of a target token.
    pub loss: Score,
}

/// The lines of the table: a label, the library, and the router over it.
const LINES: [(&str, Which, &str); 10] = [
    ("base", Which::Private, "base"),
    ("joint", Which::Joint, "expert:joint"),
    ("private, uniform", Which::Private, "uniform"),
    ("private, arrow", Which::Private, "arrow"),
    ("private, evidence", Which::Private, "evidence"),
    ("private, oracle", Which::Private, "oracle"),
    ("MBC, uniform", Which::Clustered, "uniform"),
    ("MBC, arrow", Which::Clustered, "arrow"),
    ("MBC, evidence", Which::Clustered, "evidence"),
    ("MBC, oracle", Which::Clustered, "oracle"),
];

#[derive(Clone, Copy)]
enum Which {
    Private,
    Joint,
    Clustered,
}

impl Which {
    fn of(self, libraries: &Libraries) -> &OpenLibrary {
        match self {
            Self::Private => &libraries.private,
            Self::Joint => &libraries.joint,
            Self::Clustered => &libraries.clustered,
        }
    }
}

/// Scores every line on both kinds of task, and keeps each task's scores in `results`.
pub fn score(world: &World, libraries: &Libraries, results: &mut Results, context: &Context) -> Result<Vec<Contender>> {
    let tasks = world.training.len() + world.held_out.len();
    let bar = progress::bar(&context.output, (LINES.len() * tasks) as u64, "eval");
    let mut contenders = Vec::new();
    for (label, which, router) in LINES {
        let router: Router = router.parse()?;
        let opened = which.of(libraries);
        let tokenizer = || world.place.vocabulary();
        let routing = FitContext {
            base: &world.base,
            library: opened,
            tokenizer: &tokenizer,
            tasks: &[],
            data: None,
            seed: context.seed,
            reporter: context,
        };
        let same =
            if depends_on_task(&routing, &router) { None } else { Some(build_router(&routing, &router, None, None)?) };
        let mut summary = |tasks: &[Task]| -> Result<Option<Summary>> {
            let mut scores = Vec::new();
            for task in tasks {
                bar.set_message(format!("{label} on {},", task.name));
                bar.inc(1);
                if !serves(&router, opened, task) {
                    return Ok(None);
                }
                let own = if same.is_none() { Some(build_router(&routing, &router, Some(task), None)?) } else { None };
                let filling = same.as_ref().or(own.as_ref()).context("a router fills the slots")?;
                let model = PatchedModel {
                    base: &world.base,
                    vocabulary: &world.vocabulary,
                    patches: &filling.patches,
                    routing: &*filling.templates,
                };
                let options = EvalOptions { split: Split::Test, limit: Some(world.limit), ..EvalOptions::default() };
                let scored = evaluate(&model, task, &options, &mut |_| ())?;
                results.insert(label, &task.name, &scored);
                scores.push(scored);
            }
            let mean = |metric: &str| -> Result<Score> {
                let of = |s: &lorakit_eval::TaskScores| {
                    s.metrics.get(metric).copied().with_context(|| format!("no {metric} was scored"))
                };
                Ok(mean(&scores.iter().map(of).collect::<Result<Vec<_>>>()?))
            };
            Ok(Some(Summary { exact_match: mean("exact_match")?, loss: mean("loss")? }))
        };
        contenders.push(Contender { label, training: summary(&world.training)?, held_out: summary(&world.held_out)? });
    }
    bar.finish_and_clear();
    Ok(contenders)
}

/// Whether a router has something for a task: the oracle has not where no expert was trained on it.
fn serves(router: &Router, opened: &OpenLibrary, task: &Task) -> bool {
    !matches!(router, Router::Oracle) || lorakit_route::oracle::expert_of(&task.name, &opened.experts).is_ok()
}

/// The mean of scores whose errors are independent.
fn mean(scores: &[Score]) -> Score {
    let n = scores.len() as f64;
    let squares: Option<f64> = scores.iter().map(|s| s.stderr.map(|e| e * e)).sum();
    Score { value: scores.iter().map(|s| s.value).sum::<f64>() / n, stderr: squares.map(|s| s.sqrt() / n) }
}

/// The table as text.
pub fn text(contenders: &[Contender]) -> String {
    let cell = |summary: Option<Summary>, part: fn(&Summary) -> Score, percent: bool| {
        summary.map_or(ABSENT.to_owned(), |s| shown(part(&s), percent))
    };
    let rows = contenders.iter().map(|c| {
        vec![
            c.label.to_owned(),
            cell(c.training, |s| s.exact_match, true),
            cell(c.training, |s| s.loss, false),
            cell(c.held_out, |s| s.exact_match, true),
            cell(c.held_out, |s| s.loss, false),
        ]
    });
    table(["", "trained: exact match %", "loss", "held out: exact match %", "loss"], rows)
}

/// `74.2 ±1.3`.
pub fn shown(score: Score, percent: bool) -> String {
    let (factor, digits) = if percent { (100.0, 1) } else { (1.0, 3) };
    let error = score.stderr.map_or(String::new(), |e| format!(" ±{:.digits$}", factor * e));
    format!("{:.digits$}{error}", factor * score.value)
}

/// Where Arrow sends the prompts of each family: for each family of prompts, the share of routing weight that goes to
/// the private experts of each family.
pub fn routing_by_family(world: &World, private: &OpenLibrary) -> Result<Vec<Vec<f64>>> {
    let place = |family: Option<SkillFamily>| family.and_then(|f| world.families.iter().position(|known| *known == f));
    let of_expert: Vec<Option<usize>> =
        private.experts.names().iter().map(|name| place(skills::family_of(name))).collect();
    let router: Router = "arrow".parse()?;
    let mut shares = Vec::new();
    for (family, _) in world.families.iter().enumerate() {
        let usage = Arc::new(Usage::default());
        let patches =
            router.build(&private.experts, &Setting { observer: Some(usage.clone()), ..Setting::default() })?;
        let tasks = world.training.iter().filter(|task| place(skills::family_of(&task.name)) == Some(family));
        for task in tasks {
            let rows = task.rows(Split::Validation, Some(8))?;
            let prompts = rows
                .into_iter()
                .map(|row| Ok(Example::encode(row, &world.vocabulary, world.base.config().max_positions)?.prompt))
                .collect::<Result<Vec<_>>>()?;
            let plan = world.base.plan(SequenceBatch::packed(prompts.iter().map(Vec::len)));
            world.base.hidden(&prompts.concat(), &plan, &patches)?;
        }
        let mut weights = vec![0.0; world.families.len()];
        for ((_, _, expert), share) in usage.shares() {
            if let Some(at) = of_expert[expert] {
                weights[at] += share.weight;
            }
        }
        let total: f64 = weights.iter().sum();
        shares.push(weights.into_iter().map(|w| w / total.max(f64::MIN_POSITIVE)).collect());
    }
    Ok(shares)
}
