//! `results.json` and the sample files, as text.

use std::collections::BTreeMap;

use crate::error::{EvalError, Result};
use lorakit_format::hash::sha256;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::metrics::score::{Score, TaskScores};
use crate::sample::Sample;

/// The document `results.json`: `{"results": {ROUTER: {TASK: {"n", "metrics": {NAME: {"value", "stderr"}}}}},
/// "config", "versions"}`. Keys are sorted and there are no timestamps: equal scores give equal bytes.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
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
    /// The options of the last evaluation.
    #[serde(default)]
    pub config: Value,
    /// The versions of the programs of the last evaluation.
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
    /// Unknown fields, kept so that results of other versions are not lost.
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl Results {
    /// Parses a document.
    ///
    /// # Errors
    /// If the text is not such a document.
    pub fn parse(text: &str) -> Result<Results> {
        serde_json::from_str(text).map_err(EvalError::ResultsFile)
    }

    /// The document's text, with a final newline.
    ///
    /// # Errors
    /// If `config` or `versions` cannot be serialized; never for scores.
    pub fn to_json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }

    /// Sets the scores of a router, as typed by the user, on a task, to 15 significant digits.
    pub fn insert(&mut self, router: &str, task: &str, scores: &TaskScores) {
        let rounded = |(name, score): (&String, &Score)| {
            let score = Score { value: to_15_digits(score.value), stderr: score.stderr.map(to_15_digits) };
            (name.clone(), score)
        };
        let metrics = scores.metrics.iter().map(rounded).collect();
        let result = TaskResult { n: scores.n, metrics, other: BTreeMap::new() };
        self.results.entry(router.to_string()).or_default().insert(task.to_string(), result);
    }

    /// Merges `newer` in: its results replace those of the same router and task.
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

/// The value of 15 significant digits that is nearest to `value`: serde_json reads so many exactly, and of 17 digits the
/// last may come back as another, so that a file that is read and written again would not keep its bytes.
fn to_15_digits(value: f64) -> f64 {
    format!("{value:.14e}").parse().unwrap_or(value)
}

/// The most bytes of a router's and a task's name in the name of a file.
const MAX_NAMES: usize = 200;

/// The file name for the samples of a router on a task: `samples_ROUTER_TASK.jsonl`. Characters that file systems refuse
/// become `_`, and so do brackets, as in lm-evaluation-harness, and white space. Others that a shell expands stay, such as
/// `$` and `'`. A long name is cut, and ends in a part of its hash: file systems take 255 bytes.
///
/// ```
/// use lorakit_eval::samples_file;
///
/// assert_eq!(samples_file("arrow:top_k=4", "ARC-Easy"), "samples_arrow_top_k=4_ARC-Easy.jsonl");
/// ```
pub fn samples_file(router: &str, task: &str) -> String {
    let safe = |c: char| if c.is_control() || c.is_whitespace() || "\"<>:/|\\?*[]".contains(c) { '_' } else { c };
    let names: String = format!("{router}_{task}").chars().map(safe).collect();
    if names.len() <= MAX_NAMES {
        return format!("samples_{names}.jsonl");
    }
    let cut: String =
        names.char_indices().take_while(|(at, c)| at + c.len_utf8() <= MAX_NAMES).map(|(_, c)| c).collect();
    let hash = sha256(format!("{router}_{task}").as_bytes());
    format!("samples_{cut}-{}.jsonl", &hash[..8])
}

/// The text of a sample file: one line per row, in file order.
///
/// # Errors
/// If a sample cannot be serialized; never for samples of an evaluation.
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
        let metrics = BTreeMap::from([("loss".to_string(), score)]);
        TaskScores { n: 1, metrics, samples: Vec::new(), truncated: Default::default() }
    }

    #[test]
    fn the_document_has_the_documented_form() {
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
    fn results_of_the_same_names_are_replaced_and_others_kept() {
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
    fn a_document_that_is_read_and_written_keeps_its_bytes() {
        let mut results = Results::default();
        for (at, value) in
            [0.05098529038530799, 1.0 / 3.0, 1e-7 / 7.0, 123.456_789_012_345_67, 0.0].into_iter().enumerate()
        {
            results.insert("base", &at.to_string(), &scores(value));
        }
        let text = results.to_json().unwrap();
        assert_eq!(Results::parse(&text).unwrap().to_json().unwrap(), text);
        assert!((results.get("base", "1").unwrap().metrics["loss"].value - 1.0 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn unknown_fields_are_kept() {
        let text = r#"{"results": {"r": {"t": {"n": 2, "metrics": {}, "seconds": 7}}}, "config": 1, "versions": 2}"#;
        let json = Results::parse(text).unwrap().to_json().unwrap();
        assert!(json.contains("\"seconds\": 7"), "{json}");
        assert!(Results::parse("[]").is_err());
    }

    #[test]
    fn file_names_are_safe() {
        assert_eq!(samples_file("expert:a/../b", "x y?"), "samples_expert_a_.._b_x_y_.jsonl");
        let long = |end: &str| samples_file("base", &("ä".repeat(120) + end));
        assert!(long("a").starts_with("samples_base_ää") && long("a").len() <= 223, "{}", long("a"));
        assert_ne!(long("a"), long("b"));
        let limit = samples_file("base", &"a".repeat(195));
        assert_eq!(limit, format!("samples_base_{}.jsonl", "a".repeat(195)));
    }
}
