//! `results.json` and the files of samples, as text for others to write.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::metrics::score::{Score, TaskScores};
use crate::sample::Sample;

/// The document `results.json`: `{"results": {ROUTER: {TASK: {"n", "metrics": {NAME: {"value", "stderr"}}}}},
/// "config", "versions"}`. Keys are sorted, and nothing in it tells the time: the same scores give the same bytes.
///
/// ```
/// # fn main() -> anyhow::Result<()> {
/// use lorakit_eval::Results;
///
/// let text = r#"{"results": {"base": {"boolq": {"n": 9, "metrics": {"acc": {"value": 0.5, "stderr": 0.1}}}}}}"#;
/// let results = Results::parse(text)?;
/// assert_eq!(results.get("base", "boolq").unwrap().metrics["acc"].value, 0.5);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    results: BTreeMap<String, BTreeMap<String, TaskResult>>,
    /// The settings of the evaluation that wrote last.
    #[serde(default)]
    pub config: Value,
    /// The versions of the programs that wrote last.
    #[serde(default)]
    pub versions: Value,
}

/// The scores of one router on one task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    /// Number of rows.
    pub n: usize,
    /// Every metric by name.
    pub metrics: BTreeMap<String, Score>,
    /// What else stands there: kept as it is, so that another version's results survive this one's.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Results {
    /// Reads a document that was written before.
    ///
    /// # Errors
    /// Where the text is not such a document.
    pub fn parse(text: &str) -> Result<Results> {
        serde_json::from_str(text).context("not a results.json: expected {\"results\": {ROUTER: {TASK: ...}}, ...}")
    }

    /// The document's text, with a newline at its end.
    ///
    /// # Errors
    /// None for values that came from scores; serialisation may refuse others.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Puts the scores of a router, as typed, on a task, in place of what stood there.
    pub fn insert(&mut self, router: &str, task: &str, scores: &TaskScores) {
        let result = TaskResult { n: scores.n, metrics: scores.metrics.clone(), other: BTreeMap::new() };
        self.results.entry(router.to_string()).or_default().insert(task.to_string(), result);
    }

    /// Takes everything from `newer`: its results replace those of the same router and task, others stay.
    pub fn merge(&mut self, newer: Results) {
        for (router, tasks) in newer.results {
            self.results.entry(router).or_default().extend(tasks);
        }
        self.config = newer.config;
        self.versions = newer.versions;
    }

    /// The scores of a router on a task.
    pub fn get(&self, router: &str, task: &str) -> Option<&TaskResult> {
        self.results.get(router)?.get(task)
    }

    /// Every router, its tasks and their scores, sorted by name.
    pub fn routers(&self) -> impl Iterator<Item = (&str, &BTreeMap<String, TaskResult>)> {
        self.results.iter().map(|(router, tasks)| (router.as_str(), tasks))
    }
}

/// The name of the file for the samples of a router on a task: `samples_ROUTER_TASK.jsonl`. What some file system
/// refuses in a name, and what a shell would read as a pattern, becomes `_`, as lm-evaluation-harness has it.
///
/// ```
/// use lorakit_eval::samples_file;
///
/// assert_eq!(samples_file("arrow:top_k=4", "ARC-Easy"), "samples_arrow_top_k=4_ARC-Easy.jsonl");
/// ```
pub fn samples_file(router: &str, task: &str) -> String {
    let safe = |c: char| if c.is_control() || c.is_whitespace() || "\"<>:/|\\?*[]".contains(c) { '_' } else { c };
    let names: String = format!("{router}_{task}").chars().map(safe).collect();
    format!("samples_{names}.jsonl")
}

/// The text of that file: a row a line, in file order.
///
/// # Errors
/// None for samples of an evaluation; serialisation may refuse other values.
pub fn samples_jsonl(samples: &[Sample]) -> Result<String> {
    let line = |sample: &Sample| Ok(serde_json::to_string(sample)? + "\n");
    samples.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn scores(value: f64) -> TaskScores {
        let score = Score { value, stderr: None };
        TaskScores { n: 1, metrics: BTreeMap::from([("loss".to_string(), score)]), samples: Vec::new() }
    }

    #[test]
    fn the_document_is_as_agreed() {
        let mut results =
            Results { config: json!({"seed": 0}), versions: json!({"lorakit": "1"}), ..Results::default() };
        results.insert("arrow:top_k=2", "piqa", &scores(0.5));
        let document: Value = serde_json::from_str(&results.to_json().unwrap()).unwrap();
        let expected = json!({
            "results": {"arrow:top_k=2": {"piqa": {"n": 1, "metrics": {"loss": {"value": 0.5, "stderr": null}}}}},
            "config": {"seed": 0},
            "versions": {"lorakit": "1"},
        });
        assert_eq!(document, expected);
        assert_eq!(Results::parse(&results.to_json().unwrap()).unwrap(), results);
    }

    #[test]
    fn results_of_the_same_names_are_replaced_and_others_stay() {
        let mut old = Results::default();
        old.insert("base", "piqa", &scores(1.0));
        old.insert("base", "boolq", &scores(2.0));
        old.insert("uniform", "piqa", &scores(3.0));
        let mut new = Results { config: json!({"limit": 5}), ..Results::default() };
        new.insert("base", "piqa", &scores(4.0));
        old.merge(new);
        let loss = |router, task| old.get(router, task).unwrap().metrics["loss"].value;
        assert_eq!([loss("base", "piqa"), loss("base", "boolq"), loss("uniform", "piqa")], [4.0, 2.0, 3.0]);
        assert_eq!(old.config, json!({"limit": 5}));
    }

    #[test]
    fn what_another_version_wrote_survives() {
        let text = r#"{"results": {"r": {"t": {"n": 2, "metrics": {}, "seconds": 7}}}, "config": 1, "versions": 2}"#;
        let json = Results::parse(text).unwrap().to_json().unwrap();
        assert!(json.contains("\"seconds\": 7"), "{json}");
        assert!(Results::parse("[]").is_err());
    }

    #[test]
    fn names_of_files_are_safe() {
        assert_eq!(samples_file("expert:a/../b", "x y?"), "samples_expert_a_.._b_x_y_.jsonl");
    }
}
