//! Which of the papers' claims the demo's scores support, one sentence each, and which router did best.

use super::comparison::{BASE, JOINT, OWN_EXPERT, ScoreRow, Summary, score_text};
use super::pipeline::FamilyClusters;
use super::relative_norm::RelativeNorms;
use super::setup::Setup;
use crate::output::text_table::ABSENT;
use lorakit_cluster::ComparisonSpace;
use lorakit_eval::{PairedDifference, Results, Score, Verdict};
use lorakit_task::Task;
use lorakit_task::skills::{self, SkillFamily};
use std::collections::BTreeMap;

/// Claims of the papers and of lorakit that compare two rows of the table: better, worse, claim.
const CLAIMS: [(&str, &str, &str); 10] = [
    (OWN_EXPERT, BASE, "An expert is better on its own task than the base"),
    ("private, arrow", "private, uniform", "Arrow over private experts is better than their mean"),
    (
        "private, arrow",
        "private, scaled mean",
        "Arrow over private experts is better than their mean at a strength chosen on validation rows",
    ),
    ("private, arrow", "private, random", "Arrow over private experts is better than as many experts drawn at random"),
    (
        "private, evidence",
        "private, arrow",
        "Routing by the evidence of the whole prompt is better than Arrow per token",
    ),
    (
        "private, evidence",
        "private, tfidf",
        "Routing by the evidence of the whole prompt is better than by its words alone, the nearest TF-IDF centroid",
    ),
    ("MBC, own expert", JOINT, "One expert per cluster is better on its tasks than one expert for all tasks"),
    ("MBC, arrow", "MBC, uniform", "Arrow over cluster experts is better than their mean"),
    ("MBC, arrow", "private, arrow", "Arrow over cluster experts is better than Arrow over private experts"),
    ("MBC, uniform", JOINT, "The mean of cluster experts is better than one expert for all tasks"),
];

/// What the demo found.
pub struct Findings {
    /// What came out, and which router to use: a sentence each.
    pub headline: [String; 2],
    /// How far experts are from the base, the clusters, and a verdict on each claim.
    pub sentences: Vec<String>,
}

/// The training or the held-out tasks, with their scores.
struct ScoredTasks<'a> {
    /// As in `on training tasks`.
    name: &'static str,
    tasks: &'a [Task],
    results: &'a Results,
}

impl Findings {
    /// Reads them off the scores of the training tasks and of the held-out tasks.
    pub fn of(
        rows: &[ScoreRow],
        setup: &Setup,
        norms: RelativeNorms,
        clusters: &FamilyClusters,
        results: &Results,
    ) -> Self {
        let training = ScoredTasks { name: "training tasks", tasks: &setup.training, results };
        let held_out = ScoredTasks { name: "held-out tasks", tasks: &setup.held_out, results };
        // Held-out tasks have no expert of their own: experts that know no task would be none to choose among.
        let testable = training.gain(OWN_EXPERT, BASE).is_some_and(|gain| gain.is_clearly_positive());
        let mut sentences = vec![distance(norms), agreement(clusters), budgets(setup)];
        for claim in CLAIMS {
            sentences.extend([&training, &held_out].into_iter().filter_map(|tasks| tasks.judge(claim, testable)));
        }
        Self { headline: headline(rows, &training, &held_out), sentences }
    }
}

impl ScoredTasks<'_> {
    /// How much better one row is than another in exact match, paired by task and drawn by family, since tasks of one family
    /// are alike; none where a row was not scored.
    fn gain(&self, better: &str, worse: &str) -> Option<PairedDifference> {
        let value = |label: &str, task: &Task| {
            self.results.get(label, &task.name)?.metrics.get("exact_match").map(|score| 100.0 * score.value)
        };
        let mut by_family: BTreeMap<Option<SkillFamily>, Vec<Vec<f64>>> = BTreeMap::new();
        for task in self.tasks {
            let gain = value(better, task)? - value(worse, task)?;
            by_family.entry(skills::family_of(&task.name)).or_default().push(vec![gain]);
        }
        PairedDifference::of_families(&by_family.into_values().collect::<Vec<_>>())
    }

    /// Whether one row is better than another beyond doubt.
    fn is_better(&self, better: &str, worse: &str) -> bool {
        self.gain(better, worse).is_some_and(|gain| Verdict::of(&gain, true) == Verdict::Held)
    }

    /// The sentence on a claim.
    fn judge(&self, (better, worse, claim): (&str, &str, &str), testable: bool) -> Option<String> {
        let gain = self.gain(better, worse)?;
        let ([low, high], verdict) = (gain.interval, Verdict::of(&gain, testable));
        Some(format!(
            "{claim}, on {}: {verdict} ({better} against {worse}: {:+.1} points, 95 % from {low:+.1} to {high:+.1}).",
            self.name, gain.mean
        ))
    }
}

/// What came out, and which router to use.
fn headline(rows: &[ScoreRow], training: &ScoredTasks, held_out: &ScoredTasks) -> [String; 2] {
    let percent = |score: Score| score_text(score, true);
    let exact = |label: &str| {
        let row = rows.iter().find(|row| row.label == label);
        row.and_then(|row| row.training).map_or(ABSENT.to_owned(), |summary| percent(summary.exact_match))
    };
    let came_out = format!(
        "A task's own expert answers {} % of its rows, one expert for all tasks {} %, the base {} %.",
        exact(OWN_EXPERT),
        exact(JOINT),
        exact(BASE)
    );
    let best = |tasks: &ScoredTasks, part: fn(&ScoreRow) -> Option<Summary>| {
        // A router that is told the task serves no held-out task.
        let untold = rows.iter().filter(|row| row.held_out.is_some());
        let scored: Vec<(&str, Score)> = untold.filter_map(|row| Some((row.label, part(row)?.exact_match))).collect();
        let (label, score) = *scored.iter().max_by(|a, b| a.1.value.total_cmp(&b.1.value))?;
        let rivals = scored.iter().filter(|(other, _)| *other != label && !tasks.is_better(label, other));
        let rivals: Vec<String> = rivals.map(|(other, _)| format!("`{other}`")).collect();
        let undecided =
            if rivals.is_empty() { String::new() } else { format!("; undecided against {}", rivals.join(", ")) };
        Some((label, format!("{} %{undecided}", percent(score))))
    };
    let use_it = match (best(training, |row| row.training), best(held_out, |row| row.held_out)) {
        (Some((label, known)), Some((other, unknown))) if label == other => {
            format!(
                "Not told the task, use `{label}`, the best on these test rows where an expert knows it ({known}) and where \
                 none does ({unknown})."
            )
        }
        (Some((label, known)), Some((other, unknown))) => format!(
            "Not told the task, use `{label}` ({known}) where an expert knows it, and `{other}` ({unknown}) where none does: \
             the best on these test rows."
        ),
        _ => "No router was scored.".to_owned(),
    };
    [came_out, use_it]
}

/// How far the private experts are from the base.
fn distance(norms: RelativeNorms) -> String {
    format!(
        "Private experts change the weights that they adapt by {norms}: the Frobenius norm of s B A relative to that of W."
    )
}

/// What the rows of the table were given.
fn budgets(setup: &Setup) -> String {
    let steps = setup.config.max_steps.unwrap_or_default();
    format!(
        "Steps per task: {steps} for private experts and the joint one; {steps} more, after the private ones, for those of \
         clusters. `tfidf` sees 16 prompts of each task, `evidence` the answers to 4 validation rows as well."
    )
}

/// How well the clusters of each space agree with the true families.
fn agreement(clusters: &FamilyClusters) -> String {
    let name = |space| match space {
        ComparisonSpace::Parameters => "on A and B, as published",
        ComparisonSpace::Change => "on A - A0 and B",
        ComparisonSpace::Delta => "on the deltas",
    };
    let indexes: Vec<String> =
        clusters.rand_indices.iter().map(|(space, index)| format!("{index:.2} {}", name(*space))).collect();
    format!(
        "Agreement of clusters and true families, adjusted Rand index (1: identical, 0: chance): {}.",
        indexes.join(", ")
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_task::skills::SuitePart;

    /// The exact match of a row on the task of an index.
    type ExactMatch<'a> = (&'a str, &'a dyn Fn(usize) -> f64);

    fn results(tasks: &[Task], rows: &[ExactMatch]) -> Results {
        let of = |(label, value): &ExactMatch| {
            let task = |(at, task): (usize, &Task)| {
                format!(r#""{}": {{"n": 1, "metrics": {{"exact_match": {{"value": {}}}}}}}"#, task.name, value(at))
            };
            format!("\"{label}\": {{{}}}", tasks.iter().enumerate().map(task).collect::<Vec<_>>().join(","))
        };
        let text = format!(r#"{{"results": {{{}}}}}"#, rows.iter().map(of).collect::<Vec<_>>().join(","));
        Results::parse(&text).unwrap()
    }

    #[test]
    fn a_claim_is_judged_by_paired_tasks() {
        let tasks = skills::tasks(skills::SEED, SuitePart::Training);
        let verdict = |better: &dyn Fn(usize) -> f64, testable| {
            let results = results(&tasks, &[("a", better), ("b", &|at| 0.02 * at as f64)]);
            ScoredTasks { name: "t", tasks: &tasks, results: &results }.judge(("a", "b", "X"), testable).unwrap()
        };
        // A gain of five points on every task is clear, although tasks differ by far more.
        assert!(verdict(&|at| 0.02 * at as f64 + 0.05, true).contains("X, on t: held (a against b: +5.0 points"));
        assert!(verdict(&|at| 0.02 * at as f64 - 0.05, true).contains(": not held"));
        assert!(verdict(&|at| 0.02 * at as f64 + if at % 2 == 0 { 0.05 } else { -0.05 }, true).contains(": undecided"));
        assert!(verdict(&|at| 0.02 * at as f64 + 0.05, false).contains(": not testable here"));
    }

    #[test]
    fn the_headline_names_the_best_router_that_is_not_told_the_task() {
        let summary = |value: f64| {
            let score = Score { value, stderr: None };
            Some(Summary { exact_match: score, loss: score })
        };
        let row = |label, training, held_out| ScoreRow { label, training: summary(training), held_out };
        let rows = [
            row(BASE, 0.01, summary(0.02)),
            row(JOINT, 0.7, summary(0.13)),
            row("private, evidence", 0.9, summary(0.02)),
            row(OWN_EXPERT, 0.95, None),
        ];
        let tasks = skills::tasks(skills::SEED, SuitePart::Training);
        // On held-out tasks, evidence is better than joint on the tasks of every other family alone.
        let better =
            |at: usize| skills::family_of(&tasks[at].name).is_some_and(|family| (family as usize).is_multiple_of(2));
        let known = results(
            &tasks,
            &[(BASE, &|_| 0.01), (JOINT, &|_| 0.7), ("private, evidence", &|at| 0.85 + 0.003 * at as f64)],
        );
        let unknown = results(
            &tasks,
            &[(BASE, &|_| 0.02), (JOINT, &|_| 0.13), ("private, evidence", &|at| if better(at) { 0.25 } else { 0.0 })],
        );
        let scored = |results| ScoredTasks { name: "t", tasks: &tasks, results };
        // Families are drawn, not tasks.
        let families: std::collections::BTreeSet<_> = tasks.iter().map(|task| skills::family_of(&task.name)).collect();
        assert!(families.len() < tasks.len());
        let gain = scored(&unknown).gain("private, evidence", JOINT).unwrap();
        assert_eq!((gain.families, gain.tasks), (Some(families.len()), tasks.len()));
        let [came_out, use_it] = headline(&rows, &scored(&known), &scored(&unknown));
        assert!(came_out.contains("95.0 %") && came_out.contains("base 1.0 %"), "{came_out}");
        let expected = "use `private, evidence` (90.0 %) where an expert knows it, and `joint` (13.0 %; undecided against \
                        `private, evidence`) where none does: the best on these test rows.";
        assert!(use_it.contains(expected), "{use_it}");
        let without_evidence = [row(BASE, 0.01, summary(0.02)), row(JOINT, 0.7, summary(0.13))];
        let [_, use_it] = headline(&without_evidence, &scored(&known), &scored(&unknown));
        let expected =
            "use `joint`, the best on these test rows where an expert knows it (70.0 %) and where none does (13.0 %).";
        assert!(use_it.contains(expected), "{use_it}");
    }
}
