//! `eval`: which rows are scored, few-shot prompts, and failures of one router or task.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{Ran, assert_contains, command, run};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// A folder with a task of ten rows, of which three are for testing.
struct Work(tempfile::TempDir);

impl Work {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let row = |word: &str| format!("{{\"input\": \"{word}\", \"output\": \"{word}s\"}}\n");
        let rows = |words: &[&str]| words.iter().map(|word| row(word)).collect::<String>();
        let train = ["cat", "dog", "egg", "cup", "hat", "car", "tree"];
        fs::write(folder.path().join("train.jsonl"), rows(&train)).unwrap();
        fs::write(folder.path().join("test.jsonl"), rows(&["boy", "girl", "cow"])).unwrap();
        let toml = "train = \"train.jsonl\"\ntest = \"test.jsonl\"\nmetrics = [\"exact_match\"]\nmax_new_tokens = 2\n";
        fs::write(folder.path().join("plural.toml"), toml).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn eval(&self, options: &[&str]) -> Ran {
        let tasks = self.path("plural.toml");
        run(["eval", "--base", "pico", "--tasks", &tasks].into_iter().chain(options.iter().copied()))
    }

    fn samples(&self, folder: &str, router: &str) -> Vec<Value> {
        let text = fs::read_to_string(Path::new(&self.path(folder)).join(format!("samples_{router}_plural.jsonl")));
        text.unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

#[test]
fn rows_that_are_not_scored_are_counted() {
    let work = Work::new();
    let ran = work.eval(&["--router", "base"]).ok();
    assert_contains(&ran.stderr, &["task `plural`: 3 of 10 rows are scored: the test split (3; --split all"]);
    assert_contains(&ran.stdout, &["3 of 10"]);
    let ran = work.eval(&["--router", "base", "--limit", "2"]).ok();
    assert_contains(&ran.stderr, &["2 of 10 rows", "of which the first 2 per task (--limit)"]);
    let ran = work.eval(&["--router", "base", "--split", "all"]).ok();
    assert_contains(&ran.stderr, &["all 10 rows are scored"]);
    let ran = work.eval(&["--router", "base", "--limit", "1"]).ok();
    assert_contains(&ran.stderr, &["1 of 10 rows is scored", "of which the first 1 per task"]);
    fs::write(work.path("one.jsonl"), "{\"input\": \"a\", \"output\": \"b\"}\n").unwrap();
    let one = work.path("one.jsonl");
    let ran = run(["eval", "--base", "pico", "--router", "base", "--split", "all", "--tasks", &one]).ok();
    assert_contains(&ran.stderr, &["task `one`: the only row is scored"]);
    let document = work.eval(&["--router", "base", "--json"]).json();
    assert_eq!(
        (&document["results"]["base"]["plural"]["n"], &document["config"]["tasks"][0]["rows"]),
        (&3.into(), &10.into())
    );
}

#[test]
fn an_empty_split_names_the_option_that_scores_all_rows() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("one.json");
    fs::write(&file, r#"[{"input": "a", "output": "b"}]"#).unwrap();
    let file = file.to_str().unwrap();
    let refused = |split: &str| run(["eval", "--base", "pico", "--router", "base", "--split", split, "--tasks", file]);
    let messages: Vec<String> =
        ["validation", "test", "train"].map(refused).into_iter().map(|ran| ran.stderr).collect();
    let empty: Vec<&String> = messages.iter().filter(|message| message.contains("has no")).collect();
    assert_eq!(empty.len(), 2, "{messages:?}");
    empty.into_iter().for_each(|message| assert_contains(message, &["--split all"]));
}

#[test]
fn few_shot_prompts_begin_with_train_rows() {
    let work = Work::new();
    let out = work.path("scores");
    let options = ["--router", "base", "--log-samples", "--out", &out, "--num-fewshot"];
    let shots = |count: &str| {
        work.eval(&[&options[..], &[count]].concat()).ok();
        work.samples("scores", "base").into_iter().map(|sample| sample["prompt"].as_str().unwrap().to_owned()).collect()
    };
    let prompts: Vec<String> = shots("2");
    assert_eq!(prompts, ["boy", "girl", "cow"].map(|word| format!("cat\ncats\n\ndog\ndogs\n\n{word}\n")));
    let config = fs::read_to_string(Path::new(&out).join("results.json")).unwrap();
    assert_contains(&config, &["\"num_fewshot\": 2"]);
    assert_eq!(shots("0")[0], "boy\n");
    assert_contains(&work.eval(&["--router", "base", "--num-fewshot", "8"]).failed(1), &["7 train rows", "8 examples"]);
    // As many as there are: only train rows would lack one.
    assert_eq!(shots("7")[0].matches("\n\n").count(), 7);
}

#[test]
fn a_task_without_enough_examples_does_not_stop_the_others() {
    let work = Work::new();
    fs::write(work.path("few.jsonl"), "{\"input\": \"a\", \"output\": \"b\"}\n").unwrap();
    fs::write(work.path("few.toml"), "train = \"few.jsonl\"\ntest = \"test.jsonl\"\nmax_new_tokens = 2\n").unwrap();
    let few = work.path("few.toml");
    let ran = work.eval(&[few.as_str(), "--router", "base", "--metrics", "loss", "--num-fewshot", "2", "--json"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["results"]["base"].as_object().unwrap().keys().collect::<Vec<_>>(), ["plural"]);
    assert_contains(&ran.stderr, &["task `few`", "1 train rows", "all others are complete"]);
}

#[test]
fn rows_of_text_are_no_examples_and_the_error_names_their_task() {
    let work = Work::new();
    fs::write(work.path("text.jsonl"), "{\"text\": \"cats\"}\n{\"text\": \"dogs\"}\n".repeat(20)).unwrap();
    let rows = work.path("text.jsonl");
    let second = format!("t2={rows}");
    let options = ["--router", "base", "--split", "all", "--num-fewshot", "1", "--tasks", &rows, &second];
    let message = run(["eval", "--base", "pico"].into_iter().chain(options)).failed(1);
    let place = format!("task `text` ({rows}): rows of `text` have no answers");
    assert_contains(&message, &[&place]);
}

#[test]
fn answers_that_cannot_be_generated_whole_are_announced() {
    let work = Work::new();
    let said = |max_new_tokens: usize| {
        let toml = format!(
            "train = \"train.jsonl\"\ntest = \"test.jsonl\"\nmetrics = [\"exact_match\"]\n\
             max_new_tokens = {max_new_tokens}\n"
        );
        fs::write(work.path("plural.toml"), toml).unwrap();
        work.eval(&["--router", "base"]).ok().stderr
    };
    assert_contains(&said(1), &["of 3 rows, 3 have only accepted answers longer than", "max_new_tokens = 1"]);
    assert!(!said(16).contains("answered in full"));
}

#[test]
fn settings_of_generation_and_examples_keep_scores_apart() {
    let work = Work::new();
    let out = work.path("scores");
    let write = |more: &str| {
        let toml = format!("train = \"train.jsonl\"\ntest = \"test.jsonl\"\nmetrics = [\"exact_match\"]\n{more}\n");
        fs::write(work.path("plural.toml"), toml).unwrap();
    };
    let said = |options: &[&str]| work.eval(&[&["--out", &out, "--router"][..], options].concat()).ok().stderr;
    let (library, tasks) = (work.path("library"), format!("other={}", work.path("train.jsonl")));
    run(["train-experts", "-q", "--base", "pico", "--library", &library, "--tasks", &tasks, "--set", "max_steps=1"])
        .ok();
    let uniform = ["uniform", "--library", &library];
    for setting in [
        "max_new_tokens = 3",
        "max_new_tokens = 2\nstop = [\"x\"]",
        "max_new_tokens = 2\nextract = \"x\"",
        "max_new_tokens = 2\nignore_case = true",
        "max_new_tokens = 2\nregexes_to_ignore = [\"x\"]",
        "max_new_tokens = 2\ntolerance = 0.5",
    ] {
        write("max_new_tokens = 2");
        said(&["base"]);
        assert!(!said(&uniform).contains("other settings"), "the same settings");
        write(setting);
        assert_contains(&said(&uniform), &["other settings (tasks)"]);
        fs::remove_dir_all(&out).unwrap();
    }
    write("max_new_tokens = 2");
    said(&["base", "--num-fewshot", "1"]);
    write("max_new_tokens = 2\nfewshot_delimiter = \"\\n\"");
    let shown = [&uniform[..], &["--num-fewshot", "1"]].concat();
    assert_contains(&said(&shown), &["other settings (tasks)"]);
    let config = fs::read_to_string(Path::new(&out).join("results.json")).unwrap();
    assert_contains(&config, &["\"fewshot_delimiter\": \"\\n\"", "\"max_new_tokens\": 2"]);
}

#[test]
fn one_router_s_failure_does_not_stop_the_others() {
    let work = Work::new();
    let (library, out) = (work.path("library"), work.path("scores"));
    let tasks = format!("other={}", work.path("train.jsonl"));
    let train = ["train-experts", "--base", "pico", "--library", &library, "--tasks", &tasks, "--set", "max_steps=1"];
    run(train).ok();
    let routers = ["--library", &library, "--router", "oracle", "base", "expert:none", "uniform"];
    let ran = work.eval(&[&routers[..], &["--out", &out, "--json"]].concat());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(document["results"].as_object().unwrap().keys().collect::<Vec<_>>(), ["base", "uniform"]);
    let failed: Vec<_> =
        document["errors"].as_array().unwrap().iter().map(|of| of["router"].as_str().unwrap()).collect();
    assert_eq!(failed, ["oracle", "expert:none"]);
    let written = fs::read_to_string(Path::new(&out).join("results.json")).unwrap();
    assert_contains(&written, &["\"base\"", "\"uniform\""]);
    let last = ran.stderr.lines().last().unwrap();
    assert_contains(
        last,
        &["error: 2 evaluations failed, all others are complete", "--router oracle", "--router expert:none"],
    );
    for failed in document["errors"].as_array().unwrap() {
        let why = failed["error"].as_str().unwrap();
        assert_eq!(ran.stderr.matches(why).count(), 1, "{why}: {}", ran.stderr);
    }
    let alone = work.eval(&["--library", &library, "--router", "expert:none", "--metrics", "loss"]).failed(1);
    assert_eq!(alone.matches("--router expert:none").count(), 1, "{alone}");
    assert_contains(&alone, &["error: 1 evaluation failed: --router expert:none", "other"]);
}

#[test]
fn the_normalized_exact_match_comes_with_the_exact_one_or_alone() {
    let work = Work::new();
    let metrics = |scores: Value| -> Vec<String> {
        scores["results"]["base"]["plural"]["metrics"].as_object().unwrap().keys().cloned().collect()
    };
    let scored = |options: &[&str]| metrics(work.eval(&[&["--router", "base", "--json"], options].concat()).json());
    let both = ["exact_match", "exact_match_normalized", "loss"];
    assert_eq!(scored(&[]), both);
    assert_eq!(scored(&["--metrics", "exact_match"]), both);
    assert_eq!(scored(&["--metrics", "exact_match_normalized"]), both[1..]);
    let listed = run(["task", "ls", &work.path("plural.toml"), "--json"]).json();
    assert_eq!(listed["tasks"][0]["metrics"], serde_json::json!(["loss", "exact_match", "exact_match_normalized"]));
    let toml = fs::read_to_string(work.path("plural.toml")).unwrap();
    fs::write(work.path("plural.toml"), toml.replace("exact_match", "exact_match_normalized")).unwrap();
    assert_eq!(scored(&[]), both[1..]);
}

#[test]
fn results_that_cannot_be_compared_are_announced() {
    let work = Work::new();
    let (library, out) = (work.path("library"), work.path("scores"));
    let tasks = format!("other={}", work.path("train.jsonl"));
    run(["train-experts", "-q", "--base", "pico", "--library", &library, "--tasks", &tasks, "--set", "max_steps=1"])
        .ok();
    let options = ["--library", &library, "--out", &out, "--metrics", "loss", "--router"];
    let said = |more: &[&str]| work.eval(&[&options[..], more].concat()).ok().stderr;
    said(&["base", "--num-fewshot", "2"]);
    assert_contains(&said(&["uniform"]), &["computed with other settings (num_fewshot)"]);
    assert_contains(&said(&["arrow"]), &["computed with other settings (num_fewshot)"]);
    assert!(!said(&["base"]).contains("other settings"), "the only other result is replaced");
    assert_contains(&said(&["arrow", "--bos", "never", "--seed", "1"]), &["other settings (encoding, seed)"]);
}

#[test]
fn samples_go_with_the_scores_that_they_are_of() {
    let work = Work::new();
    let out = work.path("scores");
    work.eval(&["--router", "base", "--out", &out, "--limit", "2", "--log-samples"]).ok();
    assert_eq!(work.samples("scores", "base").len(), 2);
    work.eval(&["--router", "base", "--out", &out]).ok();
    assert!(!Path::new(&out).join("samples_base_plural.jsonl").exists());
}

#[test]
fn samples_of_another_result_are_neither_replaced_nor_removed() {
    let work = Work::new();
    let (out, rows) = (work.path("scores"), work.path("test.jsonl"));
    let eval = |tasks: &[&str], more: &[&str]| {
        let tasks = tasks.iter().map(|name| format!("{name}={rows}"));
        let fixed =
            ["eval", "--base", "pico", "--router", "base", "--split", "all", "--metrics", "loss", "--out", &out];
        run(fixed.into_iter().chain(more.iter().copied()).map(str::to_owned).chain(["--tasks".to_owned()]).chain(tasks))
    };
    let both = eval(&["a b", "a_b"], &["--log-samples"]).failed(2);
    assert_contains(&both, &["samples of two results (router and task)", "`base` on `a b` and `base` on `a_b`"]);
    eval(&["a_b"], &["--log-samples"]).ok();
    let samples = || fs::read_to_string(Path::new(&out).join("samples_base_a_b.jsonl")).unwrap();
    let before = samples();
    let refused = eval(&["a b"], &["--log-samples"]).failed(2);
    assert_contains(&refused, &["`base` on `a b`", "samples_base_a_b.jsonl", "`base` on `a_b`", "use another --out"]);
    eval(&["a b"], &["--limit", "1"]).ok();
    assert_eq!(samples(), before);
    let results = fs::read_to_string(Path::new(&out).join("results.json")).unwrap();
    assert_contains(&results, &["\"a b\"", "\"a_b\""]);
}

#[test]
fn a_metric_that_no_task_has_is_an_error() {
    let work = Work::new();
    let message = work.eval(&["--router", "base", "--metrics", "loss", "acc"]).failed(1);
    assert_contains(&message, &["--metrics acc", "they have loss, exact_match, exact_match_normalized"]);
    let choices = work.path("choices.jsonl");
    fs::write(&choices, "{\"input\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 0}\n").unwrap();
    let options = ["--router", "base", "--split", "all", "--metrics", "acc", "--json"];
    let scores = work.eval(&[&[choices.as_str()], &options[..]].concat()).json();
    assert!(scores["results"]["base"]["choices"]["metrics"]["acc"].is_object(), "one task has it");
}

#[test]
fn a_part_without_pairs_prints_a_document_without_results() {
    let work = Work::new();
    let part = |options: &[&str]| work.eval(&[&["--router", "base", "--part", "0/2"], options].concat());
    assert_eq!(part(&["--json"]).json()["results"], serde_json::json!({}));
    assert_contains(&part(&[]).ok().stdout, &["no pair of a router and a task"]);
}

#[test]
fn samples_of_a_task_with_a_long_name_are_written() {
    let work = Work::new();
    let (name, out) = ("n".repeat(245), work.path("scores"));
    let task = work.path(&format!("{name}.jsonl"));
    fs::copy(work.path("test.jsonl"), &task).unwrap();
    let fixed = ["eval", "--base", "pico", "--router", "base", "--split", "all", "--log-samples"];
    run(fixed.into_iter().chain(["--out", &out, "--tasks", &task])).ok();
    let files = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(files.filter(|file| file.starts_with("samples_base_nnn")).count(), 1);
}

#[test]
#[cfg(unix)]
fn an_interruption_says_what_is_kept() {
    let work = Work::new();
    let row = format!("{{\"input\": \"{}\", \"output\": \"yes\"}}\n", "a word ".repeat(20));
    fs::write(work.path("long.jsonl"), row.repeat(50_000)).unwrap();
    let (short, long) = (work.path("plural.toml"), work.path("long.jsonl"));
    let (tasks, out) = (["--tasks", &short, &long], work.path("out"));
    let eval = ["eval", "--base", "pico", "--router", "base", "--split", "all", "--metrics", "loss", "--out", &out];
    let interrupted = command(eval.into_iter().chain(tasks)).stderr(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut interrupted = interrupted.unwrap();
    while !Path::new(&out).join("results.json").exists() {
        assert!(interrupted.try_wait().unwrap().is_none(), "the run ended before it was interrupted");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    // The message is set after the file is written.
    std::thread::sleep(std::time::Duration::from_millis(50));
    let sent = Command::new("kill").args(["-INT", &interrupted.id().to_string()]).status();
    assert!(sent.unwrap().success());
    let ended = Ran::from(interrupted.wait_with_output().unwrap());
    assert_eq!(ended.code, 130, "{}", ended.stderr);
    assert_contains(&ended.stderr, &["interrupted: finished scores are in", "results.json", "the same --out"]);
}
