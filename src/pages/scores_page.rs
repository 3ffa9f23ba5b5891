//! The report of an evaluation: means, a heat map of tasks by routers for each metric, bars for each task, and where routers
//! sent it.

use super::markup::render;
use super::page::Page;
use crate::output::gain_table::Gains;
use crate::output::score_tables::SharedTasks;
use crate::output::text_table::ABSENT;
use anyhow::Result;
use lorakit_eval::{PairedDifference, Results, Score};
use lorakit_task::Metric;
use minijinja::Value;
use serde::Serialize;

/// What the page shows.
pub struct ScoredRouters<'a> {
    /// The scores.
    pub results: &'a Results,
    /// The routers, in the order of the columns.
    pub routers: &'a [&'a str],
    /// The tasks, in the order of the rows.
    pub tasks: &'a [&'a str],
    /// How much better each router is than the first.
    pub gains: &'a Gains<'a>,
    /// Which experts the routers chose, of those that choose.
    pub routing: &'a [RoutedTasks<'a>],
    /// What was evaluated, as a sentence.
    pub lead: String,
}

/// The tasks that a router sent to experts.
pub struct RoutedTasks<'a> {
    /// The router as typed.
    pub router: &'a str,
    /// All experts.
    pub experts: &'a [String],
    /// The tasks that it sent to any expert.
    pub tasks: Vec<RoutedTask<'a>>,
}

/// Where a task went.
pub struct RoutedTask<'a> {
    /// The task.
    pub task: &'a str,
    /// The share of each expert in the routing weight.
    pub shares: Vec<f64>,
}

/// Experts that the map of a router shows.
const SHOWN_EXPERTS: usize = 24;

#[derive(Serialize)]
struct Body<'a> {
    metrics: Vec<&'a str>,
    first: &'a str,
    means: Vec<RouterMeans<'a>>,
    /// Metrics whose means are not over all tasks, with how many they are over.
    shared: Vec<String>,
    maps: Vec<ScoreMap<'a>>,
    bars: Vec<TaskBars<'a>>,
    routing: Vec<ShareMap<'a>>,
    /// The metric of the bars.
    shown: &'a str,
}

/// A row of the table of means: for each metric the mean, and the gain over the first router where there is one.
#[derive(Serialize)]
struct RouterMeans<'a> {
    router: &'a str,
    cells: Vec<MeanCell>,
}

#[derive(Serialize)]
struct MeanCell {
    score: String,
    gain: Option<String>,
}

/// The heat map of a metric: tasks by routers.
#[derive(Serialize)]
struct ScoreMap<'a> {
    metric: &'a str,
    routers: &'a [&'a str],
    rows: Vec<MapRow<'a>>,
}

#[derive(Serialize)]
struct MapRow<'a> {
    task: &'a str,
    cells: Vec<Option<MapCell>>,
}

/// A score, and how good it is within its task: 1 the best router, 0 the worst.
#[derive(Serialize)]
struct MapCell {
    score: String,
    rank: f64,
}

/// A map of tasks by experts.
#[derive(Serialize)]
struct ShareMap<'a> {
    router: &'a str,
    experts: Vec<&'a str>,
    /// How many more experts there are.
    others: usize,
    rows: Vec<ShareRow<'a>>,
}

#[derive(Serialize)]
struct ShareRow<'a> {
    task: &'a str,
    shares: Vec<f64>,
    /// The share of the experts that are not shown.
    others: f64,
}

#[derive(Serialize)]
struct TaskBars<'a> {
    task: &'a str,
    bars: Vec<ScoreBar<'a>>,
}

#[derive(Serialize)]
struct ScoreBar<'a> {
    router: &'a str,
    score: String,
    /// The length of the bar, as a percentage of the width of its card.
    percent: f64,
    best: bool,
}

/// The HTML document.
pub fn html(scored: &ScoredRouters) -> Result<String> {
    let metrics = metrics(scored);
    // Bars show an accuracy if there is one, else the loss.
    let shown =
        metrics.iter().find(|metric| **metric != Metric::Loss.name()).or(metrics.first()).copied().unwrap_or("");
    let shared_of = |metric: &&str| {
        let shared = SharedTasks::of(metric, scored.results, scored.routers, scored.tasks);
        (shared.tasks.len() < shared.scored).then(|| format!("{metric} over {} tasks", shared.count()))
    };
    let body = Body {
        shared: metrics.iter().filter_map(shared_of).collect(),
        first: scored.routers.first().copied().unwrap_or(""),
        means: scored.routers.iter().map(|router| means(scored, &metrics, router)).collect(),
        maps: metrics.iter().map(|metric| score_map(scored, metric)).collect(),
        bars: scored.tasks.iter().filter_map(|task| bars(scored, shown, task)).collect(),
        routing: scored.routing.iter().map(share_map).collect(),
        shown,
        metrics,
    };
    let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
    let title = format!("{} on {}", plural(scored.routers.len(), "router"), plural(scored.tasks.len(), "task"));
    let style = Value::from_safe_string(include_str!("scores_page.css").to_owned());
    Page { title, lead: scored.lead.clone(), style, body: render(include_str!("scores_page.html"), &body)? }.html()
}

/// The metrics that any router has, in the order of [`Metric::ALL`]; of the two exact matches the first.
fn metrics(scored: &ScoredRouters) -> Vec<&'static str> {
    let has = |metric: &&str| {
        let mut pairs = scored.routers.iter().flat_map(|router| scored.tasks.iter().map(move |task| (router, task)));
        pairs.any(|(router, task)| score(scored, router, task, metric).is_some())
    };
    let mut metrics: Vec<&str> = Metric::ALL.into_iter().map(Metric::name).filter(has).collect();
    if metrics.contains(&Metric::ExactMatch.name()) {
        metrics.retain(|metric| *metric != Metric::ExactMatchNormalized.name());
    }
    metrics
}

fn score(scored: &ScoredRouters, router: &str, task: &str, metric: &str) -> Option<Score> {
    scored.results.get(router, task)?.metrics.get(metric).copied()
}

fn means<'a>(scored: &ScoredRouters, metrics: &[&str], router: &'a str) -> RouterMeans<'a> {
    let cell = |metric: &&str| {
        let shared = SharedTasks::of(metric, scored.results, scored.routers, scored.tasks);
        let found = shared.mean(metric, scored.results, router);
        let gain = scored.gains.get(metric).and_then(|by_router| by_router.get(router));
        MeanCell {
            score: found.map_or(ABSENT.to_owned(), |score| with_error(metric, score)),
            gain: gain.map(|PairedDifference { mean, interval: [low, high], .. }| {
                let of = |value: f64| format!("{:+.*}", digits(metric), value * scale(metric));
                format!("{} [{}, {}]", of(*mean), of(*low), of(*high))
            }),
        }
    };
    RouterMeans { router, cells: metrics.iter().map(cell).collect() }
}

fn score_map<'a>(scored: &'a ScoredRouters, metric: &'a str) -> ScoreMap<'a> {
    let row = |task: &&'a str| {
        let scores: Vec<Option<f64>> =
            scored.routers.iter().map(|router| score(scored, router, task, metric).map(|score| score.value)).collect();
        let (low, high) = range(&scores);
        let rank = |value: f64| {
            // Where all are alike, none is marked.
            let rank = if high > low { (value - low) / (high - low) } else { return 0.0 };
            if metric == Metric::Loss.name() { 1.0 - rank } else { rank }
        };
        let cell = |value: Option<f64>| value.map(|value| MapCell { score: number(metric, value), rank: rank(value) });
        MapRow { task, cells: scores.into_iter().map(cell).collect() }
    };
    ScoreMap { metric, routers: scored.routers, rows: scored.tasks.iter().map(row).collect() }
}

/// The bars of a task: an accuracy on the scale from 0 to 1, a loss relative to the task's largest. None without scores.
fn bars<'a>(scored: &'a ScoredRouters, metric: &str, task: &'a str) -> Option<TaskBars<'a>> {
    let scores: Vec<Option<f64>> =
        scored.routers.iter().map(|router| score(scored, router, task, metric).map(|score| score.value)).collect();
    let (low, high) = range(&scores);
    let is_loss = metric == Metric::Loss.name();
    let (best, full) = if is_loss { (low, high) } else { (high, 1.0) };
    let bar = |(router, value): (&&'a str, &Option<f64>)| {
        let value = (*value)?;
        let percent = (100.0 * value / full.max(f64::MIN_POSITIVE)).clamp(0.0, 100.0);
        Some(ScoreBar { router, score: number(metric, value), percent, best: value == best })
    };
    let bars: Vec<ScoreBar> = scored.routers.iter().zip(&scores).filter_map(bar).collect();
    (!bars.is_empty()).then_some(TaskBars { task, bars })
}

/// The map of a router, with the experts that had the most of all tasks, in the order of the library.
fn share_map<'a>(routed: &'a RoutedTasks) -> ShareMap<'a> {
    let total = |expert: usize| routed.tasks.iter().map(|task| task.shares[expert]).sum::<f64>();
    let mut shown: Vec<usize> = (0..routed.experts.len()).collect();
    shown.sort_by(|a, b| total(*b).total_cmp(&total(*a)));
    shown.truncate(SHOWN_EXPERTS);
    shown.sort_unstable();
    let row = |task: &'a RoutedTask| {
        let shares: Vec<f64> = shown.iter().map(|expert| task.shares[*expert]).collect();
        let others = (1.0 - shares.iter().sum::<f64>()).max(0.0);
        ShareRow { task: task.task, shares, others }
    };
    ShareMap {
        router: routed.router,
        experts: shown.iter().map(|expert| routed.experts[*expert].as_str()).collect(),
        others: routed.experts.len() - shown.len(),
        rows: routed.tasks.iter().map(row).collect(),
    }
}

fn range(scores: &[Option<f64>]) -> (f64, f64) {
    let values = || scores.iter().flatten().copied();
    (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
}

/// Losses are shown as they are, all else in percent.
fn scale(metric: &str) -> f64 {
    if metric == Metric::Loss.name() { 1.0 } else { 100.0 }
}

fn digits(metric: &str) -> usize {
    if metric == Metric::Loss.name() { 2 } else { 1 }
}

fn number(metric: &str, value: f64) -> String {
    format!("{:.*}", digits(metric), value * scale(metric))
}

fn with_error(metric: &str, score: Score) -> String {
    let error = score.stderr.map_or(String::new(), |error| format!(" ±{}", number(metric, error)));
    format!("{}{error}", number(metric, score.value))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_best_router_of_a_task_is_marked_and_names_are_escaped() {
        let task = |loss: f64, exact: f64| {
            format!(
                r#"{{"n": 4, "metrics": {{"loss": {{"value": {loss}}}, "exact_match": {{"value": {exact}, "stderr": 0.1}}}}}}"#
            )
        };
        let text = format!(
            r#"{{"results": {{"base": {{"<b>": {}, "plain": {}}}, "arrow": {{"<b>": {}}}}}}}"#,
            task(2.0, 0.25),
            task(3.0, 0.0),
            task(1.0, 0.75)
        );
        let results = Results::parse(&text).unwrap();
        let gains = Gains::new();
        // Expert 3 has most, expert 0 the least.
        let experts: Vec<String> = (0..=SHOWN_EXPERTS).map(|at| format!("<b>{at}")).collect();
        let share = |at| if at == 3 { 0.5 } else { 0.5 / SHOWN_EXPERTS as f64 };
        let mut shares: Vec<f64> = (0..=SHOWN_EXPERTS).map(share).collect();
        (shares[0], shares[1]) = (0.0, shares[0] + shares[1]);
        let routed = RoutedTask { task: "plain", shares };
        let scored = ScoredRouters {
            results: &results,
            routers: &["base", "arrow"],
            tasks: &["<b>", "plain"],
            gains: &gains,
            routing: &[RoutedTasks { router: "arrow", experts: &experts, tasks: vec![routed] }],
            lead: "x".to_owned(),
        };
        let map = score_map(&scored, "loss");
        let ranks: Vec<Option<f64>> =
            map.rows[0].cells.iter().map(|cell| cell.as_ref().map(|cell| cell.rank)).collect();
        assert_eq!(ranks, [Some(0.0), Some(1.0)], "a lower loss is better");
        assert!(map.rows[1].cells[1].is_none(), "arrow was not scored on it");
        let bars = bars(&scored, "exact_match", "<b>").unwrap();
        assert_eq!(
            bars.bars.iter().map(|bar| (bar.percent, bar.best)).collect::<Vec<_>>(),
            [(25.0, false), (75.0, true)]
        );
        let map = share_map(&scored.routing[0]);
        assert_eq!((map.experts.len(), map.experts[0], map.others), (SHOWN_EXPERTS, "<b>1", 1));
        assert!((map.rows[0].shares[2], map.rows[0].others) == (0.5, 0.0), "{:?}", map.rows[0].shares);
        let cells = means(&scored, &["loss", "exact_match"], "base").cells;
        assert_eq!([cells[0].score.as_str(), cells[1].score.as_str()], ["2.00", "25.0 ±10.0"], "of `<b>` alone");
        let html = html(&scored).unwrap();
        assert!(html.contains("only some tasks have a score of every router: loss over 1 of 2 tasks"), "{html}");
        assert!(html.contains("the gain over base on all tasks that both routers were scored on"), "{html}");
        assert!(html.contains("2 routers on 2 tasks") && html.contains("&lt;b&gt;") && !html.contains("<b>"), "{html}");
        assert!(!html.contains("http") && !html.contains("<script"), "{html}");
    }
}
