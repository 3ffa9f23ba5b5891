//! Diverging training is detected and reported at the end.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::run;
use serde_json::Value;
use std::fs;
use std::path::Path;

#[test]
fn diverged_experts_are_stopped_and_reported() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("library").display().to_string();
    let train = |options: &[&str]| {
        let fixed = ["train-experts", "--json", "--base", "pico", "--library", &library];
        let tasks = ["--tasks", "suite:skills/shift_up1", "suite:skills/shift_down1"];
        // A learning rate at which the first updates do little, and those after the warmup diverge.
        let wild = ["learning_rate=3", "max_steps=24", "batch_size=4", "max_grad_norm=0", "warmup_ratio=0.5"];
        let wild = wild.iter().flat_map(|setting| ["--set", *setting]);
        run(fixed.into_iter().chain(tasks).chain(wild).chain(["--set", "eval_steps=0"]).chain(options.iter().copied()))
    };
    let ran = train(&[]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let experts = document["experts"].as_array().unwrap();
    let (failed, others): (Vec<&Value>, Vec<&Value>) = experts.iter().partition(|expert| expert["status"] == "failed");
    assert!(!failed.is_empty() && others.iter().all(|expert| expert["status"] == "trained"), "{document}");
    let error = ran.stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
    for part in ["failed", "step", "jumped", "training rows", "the worst", "max_loss_jump"] {
        assert!(error.contains(part), "`{part}` is not in: {error}");
    }
    let steps = |name: &str| -> Vec<Value> {
        let log = document["run"].as_str().unwrap();
        let log = fs::read_to_string(Path::new(log).join("log.jsonl")).unwrap();
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["train"][name].clone());
        lines.filter(|step| !step.is_null()).collect()
    };
    for expert in failed {
        let name = expert["expert"].as_str().unwrap();
        assert!(error.contains(&format!("`{name}`: at step")), "`{name}` is not in: {error}");
        assert!(!folder.path().join("library/experts").join(name).exists(), "failed experts are not kept");
        // The step that diverged has its own norm, and changed nothing.
        let steps = steps(name);
        let [.., before, last] = &steps[..] else { panic!("two steps of `{name}`") };
        assert!(before["learning_rate"].is_number() && last["learning_rate"].is_null(), "{last}");
        assert_ne!(before["grad_norm"], last["grad_norm"], "{last}");
    }
    let again = train(&[]);
    assert!(again.code == 1 && again.stderr.contains("--restart"), "{}", again.stderr);
    let document = train(&["--restart", "--set", "max_loss_jump=0"]).json();
    let kept = |expert: &Value| expert["status"] == "trained" || expert["status"] == "finished before";
    assert!(document["experts"].as_array().unwrap().iter().all(kept), "{document}");
}

/// Two tasks of one rule: answers by it, which the base knows, and answers that it gives no chance.
fn easy_and_hard_rows(folder: &Path) -> [String; 2] {
    let rows = |name: &str, answer: &dyn Fn(usize) -> String| {
        let row = |i: usize| {
            let input: String = (0..3).map(|j| char::from(b'a' + (i + j) as u8)).collect();
            format!("{{\"input\": \"+1:{input};\", \"output\": \"{}\"}}\n", answer(i))
        };
        let path = folder.join(format!("{name}.jsonl"));
        fs::write(&path, (0..12).map(row).collect::<String>()).unwrap();
        path.display().to_string()
    };
    let next = |i: usize| (1..4).map(|j| char::from(b'a' + (i + j) as u8)).collect();
    [rows("easy", &next), rows("hard", &|i| format!("^{}~", char::from(b'A' + i as u8)))]
}

#[test]
fn hard_rows_after_easy_ones_are_no_divergence() {
    let folder = tempfile::tempdir().unwrap();
    let tasks = easy_and_hard_rows(folder.path());
    for (seed, eval_steps) in [(0, "0"), (1, "0"), (2, "0"), (3, "0"), (0, "2"), (1, "2")] {
        let library = folder.path().join(format!("{seed}-{eval_steps}")).display().to_string();
        let train = format!(
            "train-experts --joint --seed {seed} --base pico --library {library} --json --set learning_rate=1e-30 \
             dropout=0 batch_size=1 max_steps=4 eval_steps={eval_steps} --tasks"
        );
        let document = run(train.split(' ').chain(tasks.iter().map(String::as_str))).json();
        assert_eq!(document["experts"][0]["status"], "trained", "nothing was learned: {document}");
    }
}

#[test]
fn divergence_is_found_in_the_first_steps_of_single_rows() {
    let folder = tempfile::tempdir().unwrap();
    let failed = |mode: &str| {
        let library = folder.path().join(mode.trim_start_matches('-').replace(' ', "")).display().to_string();
        let train = format!(
            "train-experts {mode} --base pico --library {library} -q --set learning_rate=10 batch_size=1 max_steps=12 \
             max_grad_norm=0 warmup_ratio=0 eval_steps=0 --tasks suite:skills/shift_up1 suite:skills/shift_down1"
        );
        let ran = run(train.split(' '));
        assert_eq!(ran.code, 1, "{}", ran.stdout);
        ran.stderr
    };
    let message = failed("--joint");
    assert!(message.contains("jumped") && message.contains("on training row "), "{message}");
    assert!(message.contains(" of `shift_up1`; ") || message.contains(" of `shift_down1`; "), "{message}");
    assert!(!message.contains("the worst"), "of a single row: {message}");
    let message = failed("--random-examples 2");
    assert!(message.contains("jumped") && !message.contains("training row"), "{message}");
}
