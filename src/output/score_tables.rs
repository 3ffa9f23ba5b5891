//! Tables of evaluation scores.

use crate::output::text_table::{ABSENT, table};
use lorakit_eval::{Results, Score, TaskResult};
use lorakit_task::{Metric, Split, Task};
use std::collections::BTreeSet;

/// A table per metric, tasks by routers, and one of means over tasks.
pub fn tables(results: &Results, routers: &[&str], tasks: &[Task]) -> String {
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

/// Each metric's mean over the tasks that have it. Printed last, where a reader looks first.
fn means(metrics: &[&str], results: &Results, routers: &[&str], tasks: &[Task]) -> String {
    let score = |metric: &str, router: &str, task: &Task| results.get(router, &task.name)?.metrics.get(metric).copied();
    let line = |metric: &&str| {
        let scored = tasks.iter().filter(|task| routers.iter().any(|router| score(metric, router, task).is_some()));
        let cells =
            routers.iter().map(|router| cell(mean(tasks.iter().filter_map(|task| score(metric, router, task)))));
        [(*metric).to_owned(), scored.count().to_string()].into_iter().chain(cells).collect()
    };
    let header = ["mean over tasks", "tasks"].into_iter().chain(routers.iter().copied());
    table(header, metrics.iter().map(line))
}

fn metric_table(metric: &str, results: &Results, routers: &[&str], tasks: &[Task]) -> String {
    let score = |router: &str, task: &Task| results.get(router, &task.name)?.metrics.get(metric).copied();
    let rows = |task: &Task| {
        routers.iter().find_map(|router| results.get(router, &task.name)).map(|result: &TaskResult| {
            match task.count(Split::All) {
                given if given > result.n => format!("{} of {given}", result.n),
                _ => result.n.to_string(),
            }
        })
    };
    let scored = tasks.iter().filter(|task| routers.iter().any(|router| score(router, task).is_some()));
    let line = |task: &Task| {
        let start = [task.name.clone(), rows(task).unwrap_or_default()];
        start.into_iter().chain(routers.iter().map(|router| cell(score(router, task)))).collect()
    };
    let header = [metric, "rows"].into_iter().chain(routers.iter().copied());
    table(header, scored.map(line))
}

/// A score with its standard error.
pub fn cell(score: Option<Score>) -> String {
    match score {
        None => ABSENT.to_owned(),
        Some(Score { value, stderr: None }) => format!("{value:.4}"),
        Some(Score { value, stderr: Some(error) }) => format!("{value:.4} ±{error:.4}"),
    }
}

/// The mean over tasks. Their errors are independent, so its standard error is the root of the sum of squares over n.
pub fn mean(scores: impl Iterator<Item = Score>) -> Option<Score> {
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
    fn errors_of_the_mean_over_tasks_are_independent() {
        let scores = [(1.0, Some(0.3)), (2.0, Some(0.4))].map(|(value, stderr)| Score { value, stderr });
        assert_eq!(mean(scores.into_iter()), Some(Score { value: 1.5, stderr: Some(0.25) }));
        assert_eq!(mean([Score { value: 1.0, stderr: None }].into_iter()), Some(Score { value: 1.0, stderr: None }));
        assert_eq!(mean([].into_iter()), None);
    }
}
