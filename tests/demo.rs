//! The demo, with a fifth of its work.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::run;
use serde_json::Value;
use std::fs;

/// The mean loss of a row of the demo's table over the tasks that it was scored on, with its standard error.
fn mean_loss(document: &Value, row: &str) -> (f64, f64) {
    let losses = document["results"]["results"][row].as_object().unwrap().values();
    let losses: Vec<&Value> = losses.map(|task| &task["metrics"]["loss"]).collect();
    let n = losses.len() as f64;
    let value = losses.iter().map(|loss| loss["value"].as_f64().unwrap()).sum::<f64>() / n;
    let squares: f64 = losses.iter().map(|loss| loss["stderr"].as_f64().unwrap().powi(2)).sum();
    (value, squares.sqrt() / n)
}

#[test]
fn experts_know_their_tasks_and_stay_near_the_base() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("demo");
    let document = run(["demo", "--quick", "--json", "--out", &out.display().to_string()]).json();

    let norm = |which: &str| document["relative_norm"][which].as_f64().unwrap();
    assert!(norm("min") >= 0.005 && norm("max") <= 0.05, "{}", document["relative_norm"]);
    assert!(norm("min") <= norm("mean") && norm("mean") <= norm("max"));
    let ((own, own_error), (base, base_error)) =
        (mean_loss(&document, "private, own expert"), mean_loss(&document, "base"));
    let error = own_error.hypot(base_error);
    assert!(base - own > 5.0 * error, "own expert {own:.3}, base {base:.3}, standard error {error:.3}");

    assert_eq!(document["headline"].as_array().unwrap().len(), 2);
    let findings = document["findings"].as_array().unwrap();
    assert!(findings[0].as_str().unwrap().contains("relative to that of W"), "{findings:?}");
    let stored: Value = serde_json::from_slice(&fs::read(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(stored, document["results"]);
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("prefers-color-scheme: dark") && !page.contains("<script"), "no script, light and dark");
}
