//! `eval` refuses to score rows that an expert was trained on, whatever their file and template are called.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::words;
use serde_json::{Value, json};
use std::fs;

#[test]
fn training_rows_are_recognized_under_another_name_template_and_split() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    let write = |name: &str, text: &str| fs::write(path(name), text).unwrap();
    let rows: String = (0..60).map(|i| format!("{}\n", json!({"input": format!("row {i}"), "output": i}))).collect();
    write("a.jsonl", &rows);
    write("b.jsonl", &rows.replace("\"output\"", "\"id\":null,\"output\""));
    let template = "rows = \"b.jsonl\"\nprompt = \"Q: {{ input }}\\nA:\"\n";
    write("same_split.toml", &template.replace("b.jsonl", "a.jsonl"));
    write("other_split.toml", &format!("{template}split_seed = 5\n"));
    write("own_split.toml", "rows = \"a.jsonl\"\ntest = \"b.jsonl\"\nprompt = \"{{ input }}\"\n");
    let library = path("library");
    words(&format!("train-experts --base pico --tasks {} --library {library} --set max_steps=1 -q", path("a.jsonl")))
        .ok();
    let eval = |task: &str, options: &str| {
        let task = path(task);
        words(&format!("eval --base pico --library {library} --router uniform --tasks {task} --limit 2 {options}"))
    };
    eval("a.jsonl", "").ok();
    eval("same_split.toml", "").ok();
    for task in ["other_split.toml", "own_split.toml"] {
        let error = eval(task, "").failed(1);
        assert!(error.contains("test rows are training rows of expert `a`"), "{error}");
    }
    eval("other_split.toml", "--split all").ok();
    eval("other_split.toml", "--split train").ok();

    // Records of earlier versions have no rows.
    let file = work.path().join("library/experts/a/expert.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let rows = record["tasks"][0].as_object_mut().unwrap().remove("train_rows").unwrap();
    assert_eq!(rows.as_str().unwrap().len() % 12, 0);
    fs::write(&file, record.to_string()).unwrap();
    eval("other_split.toml", "").ok();
}

#[test]
fn routers_are_not_fitted_to_scored_rows_of_another_file() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    let rows: String = (0..60).map(|i| format!("{}\n", json!({"input": format!("row {i}"), "output": i}))).collect();
    fs::write(path("a.jsonl"), &rows).unwrap();
    fs::write(path("b.toml"), "rows = \"a.jsonl\"\nprompt = \"{{ input }}?\"\nsplit_seed = 3\n").unwrap();
    let line = format!("eval --base pico --router base --tasks {} --fit {}", path("a.jsonl"), path("b.toml"));
    let error = words(&line).failed(1);
    assert!(error.contains("rows of the evaluated task `a` are among its training rows"), "{error}");
}

/// As in a benchmark whose examples are scored too.
#[test]
fn files_for_train_and_test_may_have_the_same_rows() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    let rows = |numbers: std::ops::Range<usize>| -> String {
        numbers.map(|i| format!("{}\n", json!({"input": format!("row {i}"), "output": i}))).collect()
    };
    fs::write(path("a.jsonl"), rows(0..30)).unwrap();
    fs::write(path("b.jsonl"), rows(29..60)).unwrap();
    fs::write(path("same.toml"), "train = \"a.jsonl\"\ntest = \"a.jsonl\"\n").unwrap();
    fs::write(path("few.toml"), "train = \"a.jsonl\"\ntest = \"b.jsonl\"\n").unwrap();
    let trained = |name: &str| {
        let (task, library) = (path(&format!("{name}.toml")), path(name));
        words(&format!("train-experts --base pico --tasks {task} --library {library} --set max_steps=1 -q")).ok();
        format!("eval --base pico --library {library} --router uniform --tasks {task} --limit 2 --metrics loss")
    };
    let same = trained("same");
    let error = words(&same).failed(1);
    assert!(error.contains("30 of 30 test rows are training rows of expert `same`"), "{error}");
    assert!(error.contains("files without common rows, or --split train"), "{error}");
    words(&format!("{same} --split train")).ok();
    let said = words(&trained("few")).ok().stderr;
    assert!(said.contains("1 of 31 test rows are training rows of expert `few`"), "{said}");
    let task = path("same.toml");
    let error = words(&format!("eval --base pico --router base --tasks {task} --fit {task}")).failed(1);
    assert!(error.contains("30 of 30 test rows of the evaluated task `same` are among its training rows"), "{error}");
}

#[test]
fn another_split_of_the_same_file_is_refused_by_the_name_of_the_split() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    let rows: String = (0..60).map(|i| format!("{}\n", json!({"input": format!("row {i}"), "output": i}))).collect();
    fs::write(path("a.jsonl"), rows).unwrap();
    fs::write(path("first.toml"), "rows = \"a.jsonl\"\n").unwrap();
    fs::write(path("second.toml"), "rows = \"a.jsonl\"\nsplit_seed = 5\n").unwrap();
    let (first, second, library) = (path("first.toml"), path("second.toml"), path("library"));
    words(&format!("train-experts --base pico --tasks {first} --library {library} --set max_steps=1 -q")).ok();
    let eval =
        format!("eval --base pico --library {library} --router uniform --tasks other={second} --limit 2 --split");
    for (split, expected) in [
        ("test", "so it has seen test rows"),
        ("validation", "so it has seen validation rows"),
        ("train", "so these train rows are not those that it was trained on"),
    ] {
        let error = words(&format!("{eval} {split}")).failed(1);
        assert!(error.contains(expected), "{error}");
    }
}
