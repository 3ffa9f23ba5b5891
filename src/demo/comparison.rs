//! Scores the routers over the trained libraries.

use super::pipeline::TrainedLibraries;
use super::setup::Setup;
use crate::command_context::CommandContext;
use crate::output::progress_bar;
use crate::output::text_table::{ABSENT, table};
use anyhow::{Context as _, Result};
use lorakit_eval::{EvalOptions, PatchedModel, Results, Score, evaluate};
use lorakit_fit::router::{build_router, depends_on_task};
use lorakit_fit::{FitContext, OpenLibrary};
use lorakit_lora::SequenceBatch;
use lorakit_model::TokenPrecision;
use lorakit_route::{Router, RouterContext, RoutingStats, expert_of_task, parse_router};
use lorakit_task::skills::{self, SkillFamily};
use lorakit_task::{Example, Split, Task, TaskLoader};
use std::sync::Arc;

/// A row of the demo's score table.
pub struct ScoreRow {
    /// Its name in the table and in results.json.
    pub label: &'static str,
    /// Its scores on the test rows of the training tasks.
    pub training: Option<Summary>,
    /// Its scores on the held-out tasks.
    pub held_out: Option<Summary>,
}

/// Means over tasks, with standard errors.
#[derive(Clone, Copy)]
pub struct Summary {
    /// The fraction of rows that greedy decoding answers correctly.
    pub exact_match: Score,
    /// The mean negative log-likelihood per target token.
    pub loss: Score,
}

/// The row of the base alone.
pub const BASE: &str = "base";
/// The row of one expert for all tasks.
pub const JOINT: &str = "joint";
/// The row of each task's own expert.
pub const OWN_EXPERT: &str = "private, own expert";

/// The rows of the table: label, library and router.
const ROWS: [(&str, LibraryKind, &str); 13] = [
    (BASE, LibraryKind::Private, "base"),
    (JOINT, LibraryKind::Joint, "expert:joint"),
    ("private, uniform", LibraryKind::Private, "uniform"),
    ("private, scaled mean", LibraryKind::Private, "scaled_uniform:rows=4"),
    ("private, random", LibraryKind::Private, "random"),
    ("private, arrow", LibraryKind::Private, "arrow"),
    ("private, tfidf", LibraryKind::Private, "tfidf:rows=16"),
    ("private, evidence", LibraryKind::Private, "evidence"),
    (OWN_EXPERT, LibraryKind::Private, "oracle"),
    ("MBC, uniform", LibraryKind::Clustered, "uniform"),
    ("MBC, arrow", LibraryKind::Clustered, "arrow"),
    ("MBC, evidence", LibraryKind::Clustered, "evidence"),
    ("MBC, own expert", LibraryKind::Clustered, "oracle"),
];

#[derive(Clone, Copy)]
enum LibraryKind {
    Private,
    Joint,
    Clustered,
}

impl LibraryKind {
    fn of(self, libraries: &TrainedLibraries) -> &OpenLibrary {
        match self {
            Self::Private => &libraries.private,
            Self::Joint => &libraries.joint,
            Self::Clustered => &libraries.clustered,
        }
    }
}

/// Scores every row on training and held-out tasks; `results` gets the scores of each task.
pub fn score(
    setup: &Setup,
    libraries: &TrainedLibraries,
    results: &mut Results,
    context: &CommandContext,
) -> Result<Vec<ScoreRow>> {
    let tasks = setup.training.len() + setup.held_out.len();
    let bar = progress_bar::bar(&context.output, (ROWS.len() * tasks) as u64, "eval");
    let mut rows = Vec::new();
    for (label, which, router) in ROWS {
        let router = parse_router(router)?;
        let opened = which.of(libraries);
        let tokenizer = || Ok(setup.tokenizer.clone());
        let load_tasks =
            |spec: &str, columns| Ok(TaskLoader { columns, ..TaskLoader::default() }.load(&[spec.to_owned()])?);
        let fit = FitContext {
            base: &setup.base,
            library: opened,
            tokenizer: &tokenizer,
            tasks: &[],
            load_tasks: &load_tasks,
            seed: context.seed,
            reporter: context,
        };
        let same = if depends_on_task(&fit, &*router) { None } else { Some(build_router(&fit, &*router, None, None)?) };
        let mut summary = |tasks: &[Task]| -> Result<Option<Summary>> {
            let mut scores = Vec::new();
            for task in tasks {
                bar.set_message(format!("{label} on {},", task.name));
                bar.inc(1);
                if !serves(&*router, opened, task) {
                    return Ok(None);
                }
                let own = if same.is_none() { Some(build_router(&fit, &*router, Some(task), None)?) } else { None };
                let routed = same.as_ref().or(own.as_ref()).context("the router was not built")?;
                let model = PatchedModel {
                    base: &setup.base,
                    tokenizer: &setup.tokenizer,
                    patches: &routed.patches,
                    routing: &*routed.templates,
                    precision: TokenPrecision::Exact,
                };
                let options = EvalOptions { split: Split::Test, limit: Some(setup.limit), ..EvalOptions::default() };
                let scored = evaluate(&model, task, &options, &mut |_| ())?;
                results.insert(label, &task.name, &scored);
                scores.push(scored);
            }
            let mean = |metric: &str| -> Result<Score> {
                let of = |s: &lorakit_eval::TaskScores| {
                    s.metrics.get(metric).copied().with_context(|| format!("no {metric} was scored"))
                };
                let scores = scores.iter().map(of).collect::<Result<Vec<_>>>()?;
                Score::mean_of_independent(scores).with_context(|| format!("no {metric} was scored"))
            };
            Ok(Some(Summary { exact_match: mean("exact_match")?, loss: mean("loss")? }))
        };
        rows.push(ScoreRow { label, training: summary(&setup.training)?, held_out: summary(&setup.held_out)? });
    }
    bar.finish_and_clear();
    Ok(rows)
}

/// Whether a router can serve a task: no own expert does where none was trained on it.
fn serves(router: &dyn Router, opened: &OpenLibrary, task: &Task) -> bool {
    !router.reads_task() || expert_of_task(&task.name, &opened.experts).is_ok()
}

/// The table as text.
pub fn text(rows: &[ScoreRow]) -> String {
    let cell = |summary: Option<Summary>, part: fn(&Summary) -> Score, percent: bool| {
        summary.map_or(ABSENT.to_owned(), |s| score_text(part(&s), percent))
    };
    let cells = rows.iter().map(|c| {
        vec![
            c.label.to_owned(),
            cell(c.training, |s| s.exact_match, true),
            cell(c.training, |s| s.loss, false),
            cell(c.held_out, |s| s.exact_match, true),
            cell(c.held_out, |s| s.loss, false),
        ]
    });
    table(["", "training tasks: exact match %", "loss", "held-out tasks: exact match %", "loss"], cells)
}

/// `74.2 ±1.3`.
pub fn score_text(score: Score, percent: bool) -> String {
    let (factor, digits) = if percent { (100.0, 1) } else { (1.0, 3) };
    let error = score.stderr.map_or(String::new(), |e| format!(" ±{:.digits$}", factor * e));
    format!("{:.digits$}{error}", factor * score.value)
}

/// Arrow's routing of each family's prompts: a row per family of prompts, a column per family of private experts, each
/// the fraction of routing weight.
pub fn routing_by_family(setup: &Setup, private: &OpenLibrary) -> Result<Vec<Vec<f64>>> {
    let index = |family: Option<SkillFamily>| family.and_then(|f| setup.families.iter().position(|known| *known == f));
    let of_expert: Vec<Option<usize>> =
        private.experts.names().iter().map(|name| index(skills::family_of(name))).collect();
    let router = parse_router("arrow")?;
    let mut shares = Vec::new();
    for (family, _) in setup.families.iter().enumerate() {
        let usage = Arc::new(RoutingStats::default());
        let patches = router
            .patches(&private.experts, &RouterContext { observer: Some(usage.clone()), ..RouterContext::default() })?;
        let tasks = setup.training.iter().filter(|task| index(skills::family_of(&task.name)) == Some(family));
        for task in tasks {
            let prompts = task
                .rows(Split::Validation, Some(8))?
                .into_iter()
                .map(|row| {
                    Ok(Example::encode(row, &setup.tokenizer, setup.base.config().max_positions)?.prompt().to_vec())
                })
                .collect::<Result<Vec<_>>>()?;
            let plan = setup.base.plan(SequenceBatch::packed(prompts.iter().map(Vec::len)));
            setup.base.hidden_states(&prompts.concat(), &plan, &patches)?;
        }
        let mut weights = vec![0.0; setup.families.len()];
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
