//! The pipeline from tasks to scores with the binary, on a small real base.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{Ran, run, shared};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const TASKS: [&str; 4] = ["antonym", "capitalize", "country-capital", "present-past"];
const FEW_STEPS: [&str; 8] =
    ["--set", "max_steps=4", "--set", "learning_rate=1e-2", "--set", "batch_size=4", "--set", "eval_steps=2"];

/// The reference data and a working folder.
struct Work {
    base: String,
    tasks: Vec<String>,
    folder: tempfile::TempDir,
}

impl Work {
    /// A folder with reduced copies of the tasks: few rows, a tenth of them for validation.
    fn new() -> Self {
        let (base, tasks) = (shared("data/models/stories260K-hf"), shared("data/tasks/function_vectors/abstractive"));
        let folder = tempfile::tempdir().unwrap();
        let copy = |name: &str| {
            let text = fs::read_to_string(tasks.join(format!("{name}.json"))).unwrap();
            let rows: Vec<Value> = serde_json::from_str(&text).unwrap();
            let path = folder.path().join(format!("{name}.json"));
            fs::write(&path, serde_json::to_string(&rows[..60]).unwrap()).unwrap();
            path.display().to_string()
        };
        Self { base: base.display().to_string(), tasks: TASKS.map(copy).into(), folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// `train-experts` on all tasks into a library in the folder.
    fn train(&self, library: &str, options: &[&str]) -> Ran {
        let library = self.path(library);
        let fixed = ["train-experts", "--json", "--base", &self.base, "--library", &library, "--tasks"];
        run(fixed.into_iter().chain(self.tasks.iter().map(String::as_str)).chain(options.iter().copied()))
    }

    /// Trains the library of one expert per task.
    fn private(&self) {
        self.train("private", &FEW_STEPS).ok();
    }

    fn eval(&self, library: &str, routers: &[&str], options: &[&str]) -> Ran {
        let library = self.path(library);
        let fixed = ["eval", "--json", "--base", &self.base, "--library", &library, "--tasks"];
        let tasks = self.tasks.iter().map(String::as_str);
        run(fixed
            .into_iter()
            .chain(tasks)
            .chain(["--router"])
            .chain(routers.iter().copied())
            .chain(options.iter().copied()))
    }

    fn weights(&self, library: &str, expert: &str) -> Vec<u8> {
        fs::read(self.folder.path().join(library).join("experts").join(expert).join("adapter_model.safetensors"))
            .unwrap()
    }
}

fn statuses(document: &Value) -> BTreeSet<&str> {
    document["experts"].as_array().unwrap().iter().map(|expert| expert["status"].as_str().unwrap()).collect()
}

fn modified(path: &Path) -> std::time::SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

#[test]
#[ignore = "needs ../shared"]
fn full_pipeline() {
    let work = Work::new();
    let trained = work.train("private", &FEW_STEPS).json();
    assert_eq!(statuses(&trained), BTreeSet::from(["trained"]));
    assert!(
        trained["experts"]
            .as_array()
            .unwrap()
            .iter()
            .all(|expert| expert["steps"] == 4 && expert["validation_loss"].is_f64())
    );

    let (file, page) = (work.path("clusters.json"), work.path("report.html"));
    let clustered =
        run(["cluster", "--json", "--library", &work.path("private"), "-k", "2", "--out", &file, "--report", &page])
            .json();
    assert_eq!(clustered["k"], 2);
    let spaces: Vec<&str> = clustered["report"]["spaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|space| space["space"].as_str().unwrap())
        .collect();
    assert_eq!(spaces, ["delta", "change", "parameters"], "experts trained together share their initialization");
    assert!(fs::read_to_string(page).unwrap().starts_with("<!doctype html>"));
    let clusters: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let members = |name: &str| clusters["tasks"][name].as_array().unwrap().len() as u64;
    assert_eq!(members("c0") + members("c1"), 4);

    let trained = work.train("clustered", &[&["--clusters", &file][..], &FEW_STEPS].concat()).json();
    for expert in trained["experts"].as_array().unwrap() {
        assert_eq!(
            expert["steps"].as_u64().unwrap(),
            4 * members(expert["expert"].as_str().unwrap()),
            "max_steps counts per task"
        );
    }

    let routers = ["base", "uniform", "arrow:top_k=1", "oracle", "expert:c1"];
    let out = work.path("scores");
    let scores = work.eval("clustered", &routers, &["--limit", "4", "--out", &out, "--log-samples"]).json();
    let file: Value = serde_json::from_str(&fs::read_to_string(Path::new(&out).join("results.json")).unwrap()).unwrap();
    assert_eq!(scores, file);
    let loss = |router: &str, task: &str| scores["results"][router][task]["metrics"]["loss"]["value"].as_f64().unwrap();
    for task in TASKS {
        assert!(routers.iter().all(|router| loss(router, task).is_finite()));
        assert!(loss("oracle", task) < loss("base", task), "{task}: training must help");
        let own =
            if clusters["tasks"]["c1"].as_array().unwrap().contains(&task.into()) { "expert:c1" } else { continue };
        assert_eq!(loss("oracle", task), loss(own, task));
    }
    let samples = fs::read_to_string(Path::new(&out).join("samples_arrow_top_k=1_antonym.jsonl")).unwrap();
    assert_eq!(samples.lines().count() as u64, scores["results"]["base"]["antonym"]["n"].as_u64().unwrap());
    assert!(samples.lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["metrics"]["loss"].is_f64()));
}

#[test]
#[ignore = "needs ../shared"]
fn finished_experts_are_kept_and_other_settings_refused() {
    let work = Work::new();
    work.private();
    let file = PathBuf::from(work.path("private/experts/antonym/adapter_model.safetensors"));
    let (before, bytes) = (modified(&file), work.weights("private", "antonym"));
    let again = work.train("private", &[&FEW_STEPS[..], &["--threads", "1"]].concat()).json();
    assert_eq!(statuses(&again), BTreeSet::from(["finished before"]), "the number of threads is not a setting");
    assert_eq!(modified(&file), before);

    let other = [&FEW_STEPS[..], &["--set", "rank=2"]].concat();
    let message = work.train("private", &other).failed(1);
    for part in ["antonym", "rank was 4 and is now 2", "--restart"] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(work.weights("private", "antonym"), bytes);
    let restarted = work.train("private", &[&other[..], &["--restart", "--experts", "antonym"]].concat()).json();
    assert_eq!(restarted["experts"].as_array().unwrap().len(), 1);
    assert_ne!(work.weights("private", "antonym"), bytes);
}

#[test]
#[ignore = "needs ../shared"]
fn training_does_not_depend_on_the_pass() {
    let work = Work::new();
    work.private();
    work.train("again", &FEW_STEPS).ok();
    work.train("other", &[&FEW_STEPS[..], &["--seed", "1"]].concat()).ok();
    for task in TASKS {
        assert_eq!(work.weights("private", task), work.weights("again", task));
        assert_ne!(work.weights("private", task), work.weights("other", task));
    }
    let scores = |out: &str| {
        work.eval("private", &["uniform"], &["--limit", "3", "--out", &work.path(out)]).ok();
        fs::read(work.folder.path().join(out).join("results.json")).unwrap()
    };
    assert_eq!(scores("one"), scores("two"));
}

/// Sends Ctrl-C once the log shows progress, and runs the same command again.
#[cfg(unix)]
#[test]
#[ignore = "needs ../shared"]
fn interrupted_runs_resume() {
    let work = Work::new();
    let long = ["--set", "max_steps=300", "--set", "eval_steps=50", "--set", "batch_size=4"];
    let arguments = |library: &str| {
        let fixed =
            ["train-experts", "--base", &work.base, "--library", &work.path(library), "--tasks"].map(str::to_owned);
        fixed.into_iter().chain(work.tasks.iter().cloned()).chain(long.map(str::to_owned))
    };
    let binary = env!("CARGO_BIN_EXE_lorakit");
    let mut child = std::process::Command::new(binary)
        .args(arguments("stopped"))
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let runs = work.folder.path().join("stopped/runs");
    let has_a_step = |run: &fs::DirEntry| fs::metadata(run.path().join("log.jsonl")).is_ok_and(|log| log.len() > 0);
    let under_way = || fs::read_dir(&runs).ok()?.flatten().find(has_a_step);
    while under_way().is_none() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was interrupted");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert!(std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(130));
    let message = String::from_utf8(ended.stderr).unwrap();
    assert!(message.contains("run the same command again to continue"), "{message}");

    let resumed = run(arguments("stopped")).ok();
    assert!(resumed.stderr.contains("resumes after step"), "{}", resumed.stderr);
    run(arguments("straight")).ok();
    for task in TASKS {
        assert_eq!(work.weights("stopped", task), work.weights("straight", task));
    }
}

#[test]
#[ignore = "needs ../shared"]
fn joint_training() {
    let work = Work::new();
    let joint = work.train("joint", &[&FEW_STEPS[..], &["--joint"]].concat()).json();
    let expert = &joint["experts"][0];
    assert_eq!((expert["expert"].as_str(), expert["steps"].as_u64()), (Some("joint"), Some(16)));
    let scores = work.eval("joint", &["oracle", "expert:joint"], &["--limit", "2"]).json();
    for task in TASKS {
        assert_eq!(scores["results"]["oracle"][task], scores["results"]["expert:joint"][task]);
    }
}

#[test]
#[ignore = "needs ../shared"]
fn results_are_merged_with_existing_ones() {
    let work = Work::new();
    work.private();
    let out = work.path("scores");
    for router in ["base", "uniform"] {
        work.eval("private", &[router], &["--limit", "2", "--out", &out]).ok();
    }
    let file: Value = serde_json::from_str(&fs::read_to_string(Path::new(&out).join("results.json")).unwrap()).unwrap();
    assert_eq!(file["results"].as_object().unwrap().keys().collect::<Vec<_>>(), ["base", "uniform"]);
}

#[test]
#[ignore = "needs ../shared"]
fn training_rows_are_not_evaluated() {
    let work = Work::new();
    work.private();
    let path = work.path("antonym.json");
    let rows: Vec<Value> = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    fs::write(&path, serde_json::to_string(&rows[..50]).unwrap()).unwrap();
    let message = work.eval("private", &["uniform"], &["--limit", "2"]).failed(1);
    assert!(message.contains("antonym") && message.contains("--split all"), "{message}");
    work.eval("private", &["uniform"], &["--limit", "2", "--split", "all"]).ok();
}

#[test]
#[ignore = "needs ../shared"]
fn library_add_show_and_rm() {
    let work = Work::new();
    work.private();
    let (library, copy) = (work.path("private"), work.path("copy"));
    let folder = format!("{library}/experts/antonym");
    run(["library", "add", "--library", &copy, "--base", &work.base, &folder, &format!("twin={folder}")]).ok();
    let listed = run(["library", "ls", "--library", &copy, "--json"]).json();
    let names: Vec<&str> =
        listed["experts"].as_array().unwrap().iter().map(|expert| expert["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["antonym", "twin"]);
    let shown = run(["library", "show", "--library", &copy, "twin", "--json"]).json();
    assert_eq!(shown["experts"][0]["record"]["tasks"][0]["name"], "antonym");
    assert_eq!(run(["library", "check", "--library", &copy, "--base", &work.base, "--json"]).json()["ok"], true);
    run(["library", "rm", "--library", &copy, "twin"]).ok();
    let listed = run(["library", "ls", "--library", &copy, "--json"]).json();
    assert_eq!(listed["experts"].as_array().unwrap().len(), 1);
}

#[test]
#[ignore = "needs ../shared"]
fn generate_with_adapter_and_router() {
    let work = Work::new();
    work.private();
    let library = work.path("private");
    let fixed = ["generate", "--base", &work.base, "--prompt", "Once upon a time", "--max-new-tokens", "12"];
    let plain = run(fixed).ok().stdout;
    let document = run(fixed.into_iter().chain(["--json"])).json();
    assert_eq!(plain.trim_end_matches('\n'), document["text"].as_str().unwrap());
    assert_eq!(document["tokens"], 12);
    let routed = run(fixed.into_iter().chain(["--library", &library, "--router", "expert:antonym"])).ok().stdout;
    assert_ne!(plain, routed);
    let drawn = |seed: &str| run(fixed.into_iter().chain(["--temperature", "1.5", "--seed", seed])).ok().stdout;
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
}

#[test]
#[ignore = "needs ../shared"]
fn task_show_marks_tokens_with_loss() {
    let work = Work::new();
    let shown = run(["task", "show", &work.path("antonym.json"), "--base", &work.base, "--json"]).json();
    let tokens = shown["tasks"][0]["tokens"].as_array().unwrap();
    let loss: Vec<bool> = tokens.iter().map(|token| token["loss"].as_bool().unwrap()).collect();
    let first = loss.iter().position(|loss| *loss).unwrap();
    assert!(first > 0 && loss[first..].iter().all(|loss| *loss), "the prompt carries no loss and the target does");
    assert_eq!(tokens.last().unwrap()["token"], "</s>");
    let listed = run(["task", "ls", work.folder.path().to_str().unwrap(), "--json"]).json();
    assert_eq!(listed["tasks"].as_array().unwrap().len(), 4);
}
