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

/// Each metric's mean over the tasks by which routers can be compared. Printed last, where a reader looks first.
fn means(metrics: &[&str], results: &Results, routers: &[&str], tasks: &[Task]) -> String {
    let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
    let line = |metric: &&str| {
        let shared = SharedTasks::of(metric, results, routers, &names);
        let cells = routers.iter().map(|router| cell(shared.mean(metric, results, router)));
        [(*metric).to_owned(), shared.count()].into_iter().chain(cells).collect()
    };
    let header = ["mean over tasks", "tasks"].into_iter().chain(routers.iter().copied());
    table(header, metrics.iter().map(line))
}

/// The tasks by which routers can be compared.
pub struct SharedTasks<'t> {
    /// Those on which every router has a score, of the routers that have any.
    pub tasks: Vec<&'t str>,
    /// How many tasks any router has a score on.
    pub scored: usize,
}

impl<'t> SharedTasks<'t> {
    /// For the means of a metric.
    pub fn of(metric: &str, results: &Results, routers: &[&str], tasks: &[&'t str]) -> Self {
        let has = |router: &str, task: &str| score(results, metric, router, task).is_some();
        let scored: Vec<&str> =
            tasks.iter().copied().filter(|task| routers.iter().any(|router| has(router, task))).collect();
        let is_compared = |router: &&&str| scored.iter().any(|task| has(router, task));
        let compared: Vec<&&str> = routers.iter().filter(is_compared).collect();
        let shared = scored.iter().copied().filter(|task| compared.iter().all(|router| has(router, task)));
        Self { tasks: shared.collect(), scored: scored.len() }
    }

    /// A router's mean over them.
    pub fn mean(&self, metric: &str, results: &Results, router: &str) -> Option<Score> {
        Score::mean_of_independent(self.tasks.iter().filter_map(|task| score(results, metric, router, task)))
    }

    /// How many they are, and of how many if there are more.
    pub fn count(&self) -> String {
        match self.tasks.len() {
            shared if shared < self.scored => format!("{shared} of {}", self.scored),
            shared => shared.to_string(),
        }
    }
}

fn score(results: &Results, metric: &str, router: &str, task: &str) -> Option<Score> {
    results.get(router, task)?.metrics.get(metric).copied()
}

fn metric_table(metric: &str, results: &Results, routers: &[&str], tasks: &[Task]) -> String {
    let routers = &with_metric(metric, results, routers);
    let score = |router: &str, task: &Task| score(results, metric, router, &task.name);
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

/// The routers without those that have scores, but none in this metric: chance has no loss, and a ratio of responses no
/// metric of a router. One without any scores has failed, which is shown.
fn with_metric<'r>(metric: &str, results: &Results, routers: &[&'r str]) -> Vec<&'r str> {
    let tasks = |router: &str| results.routers().find(|(name, _)| *name == router).map(|(_, tasks)| tasks);
    let has = |result: &TaskResult| result.metrics.contains_key(metric);
    let is_shown = |router: &&&str| tasks(router).is_none_or(|tasks| tasks.is_empty() || tasks.values().any(has));
    routers.iter().filter(is_shown).copied().collect()
}

/// A score with its standard error.
pub fn cell(score: Option<Score>) -> String {
    match score {
        None => ABSENT.to_owned(),
        Some(Score { value, stderr: None }) => format!("{value:.4}"),
        Some(Score { value, stderr: Some(error) }) => format!("{value:.4} ±{error:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_are_compared_by_the_tasks_that_all_of_them_have() {
        let of = |value: f64| format!(r#"{{"n": 1, "metrics": {{"acc": {{"value": {value}}}}}}}"#);
        let text = format!(
            r#"{{"results": {{"base": {{"a": {}, "b": {}}}, "arrow": {{"a": {}}}, "chance": {{}}}}}}"#,
            of(0.5),
            of(0.0),
            of(0.4)
        );
        let results = Results::parse(&text).unwrap_or_default();
        let value = |routers: &[&str], router| {
            let shared = SharedTasks::of("acc", &results, routers, &["a", "b"]);
            (shared.count(), shared.mean("acc", &results, router).map(|score| score.value))
        };
        let all = ["base", "arrow", "chance"];
        assert_eq!(value(&all, "base"), ("1 of 2".to_owned(), Some(0.5)));
        assert_eq!(value(&all, "arrow"), ("1 of 2".to_owned(), Some(0.4)));
        assert_eq!(value(&all, "chance"), ("1 of 2".to_owned(), None));
        assert_eq!(value(&["base"], "base"), ("2".to_owned(), Some(0.25)));
        // The printed mean is that one.
        let tasks = lorakit_task::skills::tasks(lorakit_task::skills::SEED, lorakit_task::skills::SuitePart::Training);
        let named = |text: String, (letter, task): (&str, &Task)| {
            text.replace(&format!("\"{letter}\""), &format!("\"{}\"", task.name))
        };
        let text = ["a", "b"].into_iter().zip(&tasks).fold(text, named);
        let printed = tables(&Results::parse(&text).unwrap_or_default(), &["base", "arrow"], &tasks[..2]);
        let last = printed.rsplit("\n\n").next().unwrap_or_default();
        assert!(last.contains("1 of 2") && last.contains("0.5000") && !last.contains("0.2500"), "{last}");
    }
}
