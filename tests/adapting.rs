//! Adapting a library to a target task with the binary: `adapt`, and routers and merges with fitted weights.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{Ran, run};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

const TASKS: [&str; 3] = ["suite:skills/order_reverse", "suite:skills/pick_second", "suite:skills/shift_up1"];
const TARGET: &str = "suite:skills/second_of_reverse";
const NAME: &str = "second_of_reverse";
const SETTINGS: [&str; 8] =
    ["--set", "max_steps=30", "--set", "learning_rate=1e-2", "--set", "batch_size=8", "--set", "max_grad_norm=1"];

/// A folder with a library over the bundled base.
struct Work(tempfile::TempDir);

impl Work {
    fn new() -> Self {
        let work = Self(tempfile::tempdir().unwrap());
        work.train("library", &TASKS, &["--set", "rank=4"]);
        work
    }

    fn train(&self, library: &str, tasks: &[&str], options: &[&str]) {
        let library = self.path(library);
        let fixed = ["train-experts", "--base", "pico", "--library", &library, "--tasks"];
        let all = fixed.iter().chain(tasks).chain(&SETTINGS).chain(options);
        run(all.chain(&["--set", "eval_steps=0"]).copied()).ok();
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    fn adapt(&self, method: &str, out: &str, options: &[&str]) -> Ran {
        let (library, out) = (self.path("library"), self.path(out));
        let fixed =
            ["adapt", "--json", "-q", "--base", "pico", "--tasks", TARGET, "--limit", "6", "--library", &library];
        let method = ["--method", method, "--out", &out];
        run(fixed.into_iter().chain(method).chain(options.iter().copied()))
    }

    fn eval(&self, library: &str, router: &str) -> f64 {
        let library = self.path(library);
        let fixed = ["eval", "--json", "--base", "pico", "--tasks", TARGET, "--limit", "6", "--library", &library];
        let results = run(fixed.into_iter().chain(["--router", router])).json();
        results["results"][router][NAME]["metrics"]["loss"]["value"].as_f64().unwrap()
    }

    fn record(&self, out: &str) -> Value {
        let path = self.0.path().join(out).join("experts").join(NAME).join("expert.json");
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    fn weights(&self, out: &str) -> Vec<u8> {
        let folder: PathBuf = self.0.path().join(out).join("experts").join(NAME);
        assert!(folder.join("adapter_config.json").is_file(), "PEFT loads the folder");
        fs::read(folder.join("adapter_model.safetensors")).unwrap()
    }
}

fn loss(document: &Value, of: &str) -> f64 {
    document["check"]["results"][of][NAME]["metrics"]["loss"]["value"].as_f64().unwrap()
}

#[test]
fn training_methods_start_from_zero_the_mean_or_an_expert() {
    let work = Work::new();
    let steps = ["--set", "max_steps=6", "--set", "learning_rate=1e-3", "--fraction", "0.1"];
    for (method, starts) in [("no_library", false), ("mean", true), ("shared:pick_second", true)] {
        let out = method.split(':').next().unwrap();
        let document = work.adapt(method, out, &steps).json();
        assert_eq!(document["method"], method);
        assert_eq!(document["adapted"][0]["rows"], 32, "a tenth of 320 rows");
        assert!(loss(&document, "adapted") < loss(&document, "base"), "{method}: {document}");
        let record = work.record(out);
        assert_eq!(record["tasks"][0]["name"], NAME);
        assert_eq!(record["settings"]["start"].is_object(), starts, "{record}");
        // The output folder is a library, and `eval` gives the score that `adapt` reported.
        assert!((work.eval(out, "oracle") - loss(&document, "adapted")).abs() < 1e-4);
    }
    assert_eq!(work.record("mean")["settings"]["start"]["origin"]["merge"], "linear:convention=paper,scale=1");
    assert_eq!(work.record("shared")["settings"]["start"]["origin"]["experts"][0]["name"], "pick_second");
    // Repeating the command changes nothing; one with other settings is refused.
    let before = work.weights("mean");
    assert_eq!(work.adapt("mean", "mean", &steps).json()["adapted"][0]["status"], "finished before");
    assert!(work.adapt("no_library", "mean", &steps).failed(1).contains("--restart"));
    assert_eq!(work.weights("mean"), before);
}

#[test]
fn adapt_eval_and_merge_fit_the_same_weights() {
    let work = Work::new();
    let cat = "cat:steps=20,rows=40";
    for (method, router, merge) in [
        ("lorahub", "lorahub", "lorahub"),
        (
            "lorahub:mode=as-published,budget=12",
            "lorahub:mode=as-published,budget=12",
            "lorahub:mode=as-published,budget=12",
        ),
        (cat, cat, "cat_learned:steps=20,rows=40"),
    ] {
        let document = work.adapt(method, "adapted", &["--restart"]).json();
        let own = loss(&document, "adapted");
        assert!(own <= loss(&document, "base"), "{method}: {document}");
        assert!((work.eval("library", router) - own).abs() < 1e-3 * own, "{method}");
        let (library, out) = (work.path("library"), work.path("merged"));
        // The library records its base, pico.
        let fixed = ["merge", "--json", "-q", "--library", &library, "--out", &out, "--overwrite"];
        let merged = run(fixed.iter().copied().chain(["--method", merge, "--fit", TARGET])).json();
        assert_eq!(merged["fit"]["found"]["weights"], document["adapted"][0]["fit"]["weights"], "{method}");
        let verified = run(["verify", "--base", "pico", "--library", &library, "--merged", &out]);
        verified.ok();
        assert_eq!(fs::read(work.0.path().join("merged/adapter_model.safetensors")).unwrap(), work.weights("adapted"));
    }
}

#[test]
fn fits_are_deterministic_and_report_held_out_loss() {
    let work = Work::new();
    for method in ["lorahub:rows=4", "cat:per=module,simplex=true,steps=10,rows=20"] {
        let (one, two) = (work.adapt(method, "one", &["--restart"]), work.adapt(method, "two", &["--restart"]));
        let held_out = &one.json()["adapted"][0]["fit"]["held_out_loss"];
        assert!(held_out["base"].as_f64().unwrap() > 0.0 && held_out["fitted"].as_f64().unwrap() > 0.0, "{held_out}");
        two.ok();
        assert_eq!(work.weights("one"), work.weights("two"), "{method}");
    }
    // Cached: nothing is fitted again.
    let again = work.adapt("cat:per=module,simplex=true,steps=10,rows=20", "one", &[]).json();
    assert!(again["adapted"][0]["fit"]["weights"].is_object(), "{again}");
    // Only the selected experts.
    let document =
        work.adapt("cat:per=expert,steps=5,rows=10", "few", &["--experts", "order_reverse,shift_up1"]).json();
    let weights = document["adapted"][0]["fit"]["weights"]["all layers"].as_object().unwrap();
    assert_eq!(weights.keys().collect::<Vec<_>>(), ["order_reverse", "shift_up1"]);
}

#[test]
fn published_lorahub_refuses_unequal_ranks() {
    let work = Work::new();
    work.train("library", &["suite:skills/join_dash"], &["--set", "rank=2"]);
    let error = work.adapt("lorahub:mode=as-published", "published", &[]).failed(1);
    assert!(error.contains("`join_dash` and `order_reverse`") && error.contains("their ranks are 2 and 4"), "{error}");
    work.adapt("lorahub:rows=2", "greedy", &[]).ok();
    work.adapt("mean", "mean", &["--set", "max_steps=2"]).ok();
    assert_eq!(work.record("mean")["settings"]["start"]["origin"]["merge"], "svd:rank=4");
}

#[test]
fn poly_fits_routing_or_routing_and_skills() {
    let work = Work::new();
    let bytes = |expert: &str| {
        let folder = work.0.path().join("library/experts").join(expert);
        fs::read(folder.join("adapter_model.safetensors")).unwrap()
    };
    let before = bytes("order_reverse");
    for method in ["poly_z", "poly"] {
        let adapted = work.adapt(method, method, &SETTINGS).json();
        let losses = adapted["adapted"][0]["fit"]["train"].as_array().unwrap();
        let loss = |at: usize| losses[at].as_f64().unwrap();
        assert_eq!(losses.len(), 30);
        assert!(loss(29) < loss(0), "{method}: {losses:?}");
        let weights = work.weights(method);
        let again = work.adapt(method, method, &SETTINGS).json();
        assert_eq!((&again["adapted"], work.weights(method)), (&adapted["adapted"], weights));
        assert_eq!(work.record(method)["settings"]["method"], method);
    }
    assert!(work.eval("poly", &format!("expert:{NAME}")) < work.eval("poly_z", &format!("expert:{NAME}")));
    assert_eq!(bytes("order_reverse"), before, "the library is unchanged");
    work.train("library", &["suite:skills/join_dash"], &["--set", "rank=2"]);
    assert!(work.adapt("poly", "uneven", &[]).failed(1).contains("rank 2"));
}

#[test]
fn adapt_fails_before_anything_is_written() {
    let work = Work::new();
    for (method, options, code, named) in [
        ("soup", &[][..], 2, "no_library, mean, shared"),
        ("mean:rank=3", &[], 2, "`mean` has no settings"),
        ("lorahub:rows=0", &[], 2, "rows=0"),
        ("mean", &["--fraction", "0"], 2, "above 0"),
        ("shared", &[], 1, "--joint"),
        ("shared:nobody", &[], 1, "nobody"),
        ("mean", &["--experts", "nobody"], 1, "no expert `nobody`"),
        ("mean", &["--set", "rank=3"], 1, "has rank 4 and alpha 16"),
    ] {
        let error = work.adapt(method, "wrong", options).failed(code);
        assert!(error.contains(named), "{method} {options:?}: {error}");
    }
    assert!(!work.0.path().join("wrong").exists(), "a failure leaves nothing behind");
    assert!(work.adapt("mean", "library", &[]).failed(2).contains("are the same folder"));
    let none = run(["adapt", "--base", "pico", "--tasks", TARGET, "--method", "cat", "--out", &work.path("wrong")]);
    assert!(none.failed(2).contains("--method cat needs --library"));
    let merge = |options: &[&str]| {
        let (library, out) = (work.path("library"), work.path("wrong"));
        run(["merge", "--library", &library, "--out", &out].into_iter().chain(options.iter().copied()))
    };
    assert!(merge(&["--method", "cat_learned"]).failed(2).contains("it needs --fit"));
    assert!(merge(&["--method", "cat", "--fit", TARGET]).failed(2).contains("does not fit weights"));
    assert!(merge(&["--method", "soup"]).failed(2).contains("lorahub, cat_learned"));
}

#[test]
fn a_flag_overrides_a_setting() {
    let work = Work::new();
    for (flags, recorded) in [(&["--bos", "auto"][..], "auto"), (&["--bos", "never"], "never"), (&[], "never")] {
        let set = ["--set", "bos=never", "--set", "max_steps=1", "--restart"];
        work.adapt("no_library", "bos", &[&set, flags].concat()).ok();
        let settings = work.record("bos")["settings"]["settings"].clone();
        assert!(settings.is_object(), "{settings}");
        // A default is not recorded.
        assert_eq!(settings.get("bos").and_then(Value::as_str).unwrap_or("auto"), recorded, "{flags:?} {settings}");
    }
}

#[test]
fn unused_settings_are_refused() {
    let work = Work::new();
    let refused = work.adapt("cat", "out", &["--set", "learning_rate=0.5"]).failed(2);
    assert!(refused.contains("colon, as in --method cat:per=layer"), "{refused}");
    assert!(work.adapt("lorahub", "out", &["--config", "nowhere.toml"]).failed(2).contains("--config"));
    assert!(!work.0.path().join("out").exists(), "nothing is written");
    let few = ["--set", "target_modules=q_proj", "--set", "max_steps=2"];
    let lost = work.adapt("mean", "out", &few).failed(1);
    assert!(lost.contains("k_proj") && lost.contains("target_modules"), "{lost}");
}

#[test]
fn settings_are_checked_as_by_train_experts() {
    let work = Work::new();
    for (setting, named) in [("target_modules=q_proj,v_projj", "v_projj"), ("rank=500", "`rank` is 500")] {
        let refused = work.adapt("no_library", "out", &["--set", setting]).failed(1);
        assert!(refused.contains(named), "{setting}: {refused}");
    }
    assert!(!work.0.path().join("out").exists(), "nothing is written");
    let few = ["--set", "max_steps=1", "splits=2", "routing_learning_rate=0.2", "--fraction", "0.1"];
    let said = work.adapt("no_library", "none", &few).ok().stderr;
    assert!(said.contains("unused settings: routing_learning_rate, splits"), "{said}");
    let said = work.adapt("poly_z", "routed", &[&few[..], &["--set", "learning_rate=1"]].concat()).ok().stderr;
    assert!(said.contains("poly_z does not use the settings learning_rate, splits"), "{said}");
}

#[test]
fn rows_that_are_not_used_are_announced() {
    let work = Work::new();
    // `label` is false: the completion is not desired.
    let row =
        |i: usize| format!("{{\"prompt\": \"x{i}\", \"completion\": \"y\", \"label\": {}}}\n", !i.is_multiple_of(4));
    let path = work.path("kto.jsonl");
    fs::write(&path, (0..40).map(row).collect::<String>()).unwrap();
    let library = work.path("library");
    let (out, clusters) = (work.path("out"), work.path("c.json"));
    let few = ["--method", "no_library", "--set", "max_steps=1", "--limit", "1", "--out", &out];
    let fitted = ["--router", "cat:steps=1,rows=2", "--limit", "1", "--metrics", "loss", "--fit", &path];
    let clustered = ["--method", "embedding", "-k", "1", "--out", &clusters];
    for arguments in [
        [&["adapt", "--base", "pico", "--tasks", &path], &few[..]].concat(),
        [&["eval", "--base", "pico", "--library", &library, "--tasks", TARGET], &fitted[..]].concat(),
        [&["cluster", "--base", "pico", "--tasks", &path, TARGET], &clustered[..]].concat(),
    ] {
        let said = run(&arguments).ok().stderr;
        assert!(said.contains("task `kto`: 10 of 40 rows are left out"), "{arguments:?}: {said}");
    }
}

#[test]
fn adapters_record_the_tasks_of_their_experts() {
    let work = Work::new();
    let few = ["--set", "max_steps=2", "--fraction", "0.1"];
    for (method, options) in [("mean", &few[..]), ("poly", &few), ("lorahub", &few[2..])] {
        work.adapt(method, method, options).ok();
        let seen = work.record(method)["seen"].clone();
        let names: Vec<&str> = seen.as_array().unwrap().iter().map(|task| task["name"].as_str().unwrap()).collect();
        assert_eq!(names, ["order_reverse", "pick_second", "shift_up1"], "{method}");
    }
}

#[test]
fn a_task_without_test_rows_is_adapted_but_not_evaluated() {
    let work = Work::new();
    let rows: String = (0..6).map(|i| format!("{{\"input\": \"x{i}\", \"output\": \"y\"}}\n")).collect();
    let few = work.path("few.toml");
    fs::write(work.path("few.jsonl"), rows).unwrap();
    fs::write(&few, "name = \"few\"\ntrain = \"few.jsonl\"\n").unwrap();
    let tasks = ["adapt", "--json", "--base", "pico", "--limit", "6", "--tasks", TARGET, &few];
    let rest = ["--method", "no_library", "--set", "max_steps=1", "--out", &work.path("out")];
    let ran = run(tasks.into_iter().chain(rest)).ok();
    assert!(ran.stderr.contains("`few` is not evaluated"), "{}", ran.stderr);
    let document = ran.json();
    assert_eq!(document["adapted"].as_array().unwrap().len(), 2);
    let checked = document["check"]["results"]["adapted"].as_object().unwrap();
    assert!(checked.contains_key(NAME) && !checked.contains_key("few"), "{checked:?}");
}

#[test]
fn fraction_limits_the_rows() {
    let work = Work::new();
    let document = work.adapt("no_library", "out", &["--set", "max_steps=1", "--fraction", "0.05"]).json();
    assert_eq!(document["adapted"][0]["rows"], 16, "a twentieth of 320");
}
