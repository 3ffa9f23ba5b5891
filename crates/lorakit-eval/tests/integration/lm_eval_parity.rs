//! Multiple choice against lm-evaluation-harness 0.4.13 with transformers 5.23, float32 on the CPU.
//!
//! lm_eval.json was written by this command in the root of the repository:
//! `python scripts/lm_eval_check.py ../shared/data/models/stories260K-hf ../shared/data/tasks/llm_adapters --out
//! crates/lorakit-eval/tests/integration/lm_eval.json`.

use crate::fixture::{Fixture, shared, task};
use lorakit_eval::{EvalOptions, TaskScores, evaluate};
use lorakit_task::{Split, Task};
use serde_json::{Value, json};
use std::path::Path;

/// A row's question, its choices and the index of the correct one, as in the script.
type Question<'a> = (String, Vec<&'a str>, usize);

/// Reads a row's instruction and answer.
type Read = for<'a> fn(&'a str, &str) -> Question<'a>;

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap();
    rest.split_once(after).unwrap().0
}

fn boolq<'a>(instruction: &'a str, answer: &str) -> Question<'a> {
    (between(instruction, "question: ", "\n").into(), vec!["false", "true"], usize::from(answer == "true"))
}

fn piqa<'a>(instruction: &'a str, answer: &str) -> Question<'a> {
    let question = between(instruction, "question: ", "\n\nSolution1: ");
    let first = between(instruction, "\n\nSolution1: ", "\n\nSolution2: ");
    let second = between(instruction, "\n\nSolution2: ", "\n\n");
    (question.into(), vec![first, second], usize::from(answer == "solution2"))
}

fn arc_easy<'a>(instruction: &'a str, answer: &str) -> Question<'a> {
    let body = instruction.split("\n\n").nth(1).unwrap();
    let choices = (1..).map_while(|n| Some(body.split_once(&format!("Answer{n}: "))?.1));
    let texts = choices.enumerate().map(|(i, rest)| rest.split(&format!("Answer{}: ", i + 2)).next().unwrap().trim());
    (format!("{instruction}\n\n{instruction}"), texts.collect(), answer["answer".len()..].parse::<usize>().unwrap() - 1)
}

/// The first hundred rows of a task as multiple choice.
fn load(folder: &Path, name: &str, read: Read, toml: &str) -> Task {
    let text = std::fs::read_to_string(shared(&format!("data/tasks/llm_adapters/{name}/test.json"))).unwrap();
    let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
    let line = |row: &Value| {
        let (question, choices, gold) = read(row["instruction"].as_str().unwrap(), row["answer"].as_str().unwrap());
        json!({"input": question, "choices": choices, "answer": gold}).to_string() + "\n"
    };
    std::fs::write(folder.join("rows.jsonl"), rows[..100].iter().map(line).collect::<String>()).unwrap();
    task(folder, "task.toml", &format!("rows = \"rows.jsonl\"\n{toml}"))
}

fn compare(name: &str, scores: &TaskScores, expected: &Value) {
    let expected = &expected[name];
    let theirs: Vec<Vec<f64>> = serde_json::from_value(expected["log_likelihoods"].clone()).unwrap();
    assert_eq!(theirs.len(), 100, "{name}");
    let mut differences = Vec::new();
    for (sample, theirs) in scores.samples.iter().zip(&theirs) {
        assert_eq!(sample.choices.len(), theirs.len(), "{name}: row {}", sample.row);
        for (ours, theirs) in sample.choices.iter().zip(theirs) {
            differences.push((ours.log_likelihood - theirs).abs());
        }
    }
    let largest = differences.into_iter().max_by(f64::total_cmp).unwrap();
    assert!(largest < 1e-3, "{name}: log-likelihoods differ by up to {largest}");
    for metric in ["acc", "acc_norm"] {
        let (ours, theirs) = (scores.metrics[metric].value, expected[metric].as_f64().unwrap());
        assert!((ours - theirs).abs() < 1e-9, "{name}: {metric} {ours} {theirs}");
    }
}

#[test]
#[ignore = "needs ../shared"]
fn log_likelihoods_and_accuracies_match_lm_evaluation_harness() {
    let stories = Fixture::stories();
    let folder = tempfile::tempdir().unwrap();
    let expected: Value = serde_json::from_str(include_str!("lm_eval.json")).unwrap();
    let question = "prompt = \"Question: {{ input }}\\nAnswer:\"";
    let tasks: [(&str, Read, &str); 3] =
        [("boolq", boolq, question), ("piqa", piqa, question), ("ARC-Easy", arc_easy, "")];
    for (name, read, toml) in tasks {
        let task = load(folder.path(), name, read, toml);
        let options = EvalOptions { split: Split::All, ..EvalOptions::default() };
        compare(name, &evaluate(&stories.model(), &task, &options, &mut |_| ()).unwrap(), &expected);
    }
}
