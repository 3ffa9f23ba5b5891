//! How much better each router is than the first, paired by task.

use crate::output::text_table::{ABSENT, table};
use lorakit_eval::{DECISIVE_TASKS, PairedDifference, Results};
use lorakit_task::{Metric, Task};
use std::collections::{BTreeMap, BTreeSet};

/// The gain of every router but the first over the first, by metric and router: positive where it is better. Only of
/// metrics that [`DECISIVE_TASKS`] tasks have under both.
pub type Gains<'a> = BTreeMap<&'a str, BTreeMap<&'a str, PairedDifference>>;

/// The gains over the first of `routers`.
pub fn gains<'a>(results: &'a Results, routers: &[&'a str], tasks: &[Task]) -> Gains<'a> {
    let mut gains = Gains::new();
    let Some((first, others)) = routers.split_first() else { return gains };
    let scored = results.routers().filter(|(router, _)| router == first).flat_map(|(_, tasks)| tasks.values());
    let metrics: BTreeSet<&str> = scored.flat_map(|result| result.metrics.keys().map(String::as_str)).collect();
    for metric in metrics {
        for router in others {
            let gain = PairedDifference::of(&paired(results, (router, first), metric, tasks));
            if let Some(gain) = gain.filter(|gain| gain.tasks >= DECISIVE_TASKS) {
                gains.entry(metric).or_default().insert(*router, gain);
            }
        }
    }
    gains
}

/// How much better the first of a pair is than the second in a metric, by task: over the tasks of both, which may be more
/// than those that means are over, the tasks of all routers.
fn paired(results: &Results, (better, worse): (&str, &str), metric: &str, tasks: &[Task]) -> Vec<Vec<f64>> {
    let value = |router: &str, task: &Task| results.get(router, &task.name)?.metrics.get(metric).map(|s| s.value);
    let sign = if metric == Metric::Loss.name() { -1.0 } else { 1.0 };
    let gain = |task| Some(vec![sign * (value(better, task)? - value(worse, task)?)]);
    tasks.iter().filter_map(gain).collect()
}

/// The gains as a table; none where there are none.
pub fn text(gains: &Gains, routers: &[&str]) -> Option<String> {
    let (first, others) = routers.split_first()?;
    // Routers that failed have none, nor has what is no router.
    let has_gain = |router: &&&str| gains.values().any(|by_router| by_router.contains_key(*router));
    let others: Vec<&str> = others.iter().filter(has_gain).copied().collect();
    // A router that lacks tasks of the others is compared on those it has.
    let cell = |gain: Option<&PairedDifference>, most: usize| match gain {
        None => ABSENT.to_owned(),
        Some(PairedDifference { tasks, mean, interval: [low, high], .. }) => {
            let fewer = if *tasks < most { format!(" on {tasks} of {most}") } else { String::new() };
            format!("{mean:+.3} [{low:+.3}, {high:+.3}]{fewer}")
        }
    };
    let line = |(metric, by_router): (&&str, &BTreeMap<&str, PairedDifference>)| {
        let tasks = by_router.values().map(|gain| gain.tasks).max().unwrap_or(0);
        let cells = others.iter().map(|router| cell(by_router.get(router), tasks));
        [(*metric).to_owned(), tasks.to_string()].into_iter().chain(cells).collect()
    };
    let title = format!("gain over {first}, 95 %");
    let header = [title.as_str(), "tasks"].into_iter().chain(others.iter().copied());
    (!gains.is_empty()).then(|| table(header, gains.iter().map(line)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_task::skills::{self, SuitePart};

    fn results(tasks: &[Task], loss: impl Fn(&str, usize) -> f64) -> Results {
        let score = |router: &str, at: usize| {
            format!(r#"{{"n": 1, "metrics": {{"loss": {{"value": {}}}}}}}"#, loss(router, at))
        };
        let of = |router: &str| {
            let tasks = tasks.iter().enumerate().map(|(at, task)| format!("\"{}\": {}", task.name, score(router, at)));
            format!("\"{router}\": {{{}}}", tasks.collect::<Vec<_>>().join(","))
        };
        Results::parse(&format!(r#"{{"results": {{{}, {}}}}}"#, of("base"), of("arrow"))).unwrap()
    }

    #[test]
    fn a_lower_loss_is_a_gain() {
        let tasks = skills::tasks(skills::SEED, SuitePart::Training);
        let results = results(&tasks, |router, at| if router == "base" { 2.0 } else { 1.0 + 0.01 * at as f64 });
        let gains = gains(&results, &["base", "arrow"], &tasks);
        assert!((gains["loss"]["arrow"].mean - 0.845).abs() < 1e-9, "{gains:?}");
        let text = text(&gains, &["base", "arrow"]).unwrap();
        assert!(text.contains("+0.845 [+0.8") && text.contains("gain over base"), "{text}");
    }

    #[test]
    fn a_gain_over_fewer_tasks_than_others_says_so() {
        let tasks = &skills::tasks(skills::SEED, SuitePart::Training)[..DECISIVE_TASKS + 2];
        let of = |router: &str, count: usize| {
            let task = |task: &Task| format!(r#""{}": {{"n": 1, "metrics": {{"loss": {{"value": 1}}}}}}"#, task.name);
            format!("\"{router}\": {{{}}}", tasks[..count].iter().map(task).collect::<Vec<_>>().join(","))
        };
        let all = tasks.len();
        let routers = [of("base", all), of("arrow", all), of("oracle", DECISIVE_TASKS)].join(",");
        let results = Results::parse(&format!(r#"{{"results": {{{routers}}}}}"#)).unwrap();
        let routers = ["base", "arrow", "oracle"];
        let text = text(&gains(&results, &routers, tasks), &routers).unwrap();
        assert_eq!(text.matches(&format!("on {DECISIVE_TASKS} of {all}")).count(), 1, "{text}");
    }

    #[test]
    fn few_tasks_have_no_gain() {
        let tasks = &skills::tasks(skills::SEED, SuitePart::Training)[..DECISIVE_TASKS - 1];
        let results = results(tasks, |router, _| if router == "base" { 2.0 } else { 1.0 });
        assert!(gains(&results, &["base", "arrow"], tasks).is_empty());
        assert!(gains(&results, &[], tasks).is_empty());
    }
}
