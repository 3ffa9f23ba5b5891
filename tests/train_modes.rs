//! Training by full fine-tuning, on random examples and of single steps, and what libraries refuse and commands announce
//! of it, with the binary and its bundled base.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod four_tasks;

use binary::words;
use four_tasks::{QUICK, TASKS, loss, names, train};
use lorakit_task::{Split, Task};
use serde_json::Value;
use std::fs;

#[test]
fn full_fine_tuning_writes_a_base() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    let options = "--full --set max_steps=4 --set learning_rate=1e-3";
    let trained = train(&library, options).json();
    assert_eq!(trained["experts"][0]["steps"], 16, "max_steps counts per task");
    let model = library.join("models/full");
    let model = model.display();
    assert!(loss(&model.to_string(), "", "base") < loss("pico", "", "base"), "training must help");

    let listed = words(&format!("library ls --json --library {}", library.display())).json();
    assert_eq!((&listed["models"][0], listed["experts"].as_array().unwrap().len()), (&Value::from("full"), 0));
    let weights = fs::read(library.join("models/full/model.safetensors")).unwrap();
    assert_eq!(train(&library, options).json()["experts"][0]["status"], "finished before");
    let warnings = train(&library, &format!("{options} --set rank=9 --set splits=3 --set use_rslora=true"));
    let warnings = warnings.ok().stderr;
    assert!(warnings.contains("unused settings: dropout, rank, use_rslora, splits"), "{warnings}");
    let poly = train(&work.path().join("p"), "--poly 2 --plan --set splits=3").ok().stderr;
    assert!(poly.contains("unused settings: splits"), "{poly}");
    let message = train(&library, &format!("{options} --set learning_rate=2e-3")).failed(1);
    assert!(message.contains("model `full`") && message.contains("learning_rate was"), "{message}");
    assert!(fs::read(library.join("models/full/model.safetensors")).unwrap() == weights);
    let check = || words(&format!("library check --json --library {}", library.display()));
    assert_eq!(check().json()["models"][0]["model"], "full");
    let mut changed = weights.clone();
    *changed.last_mut().unwrap() ^= 1;
    fs::write(library.join("models/full/model.safetensors"), changed).unwrap();
    let found = check();
    assert_eq!(found.code, 1);
    assert!(found.stderr.contains("1 model of 1") && found.stdout.contains("retrain the model"), "{}", found.stdout);
    fs::write(library.join("models/full/model.safetensors"), weights).unwrap();

    // Adapters can be trained over it, and rows that it was trained on are not scored.
    words(&format!("base info {model}")).ok();
    let other = "suite:skills@5/shift_up1";
    let message = words(&format!("eval --base {model} --tasks {other} --router base")).failed(1);
    assert!(message.contains("--split all"), "{message}");
}

#[test]
fn random_examples_split_rows_and_steps() {
    let work = tempfile::tempdir().unwrap();
    let trained = train(&work.path().join("l"), "--random-examples 3 --set max_steps=6").json();
    assert_eq!(names(&trained, "experts"), ["examples_0", "examples_1", "examples_2"]);
    let experts = trained["experts"].as_array().unwrap();
    let rows: u64 = experts.iter().map(|expert| expert["rows"].as_u64().unwrap()).sum();
    let joint = train(&work.path().join("j"), "--joint --set max_steps=1").json();
    assert_eq!(joint["experts"][0]["rows"].as_u64(), Some(rows));
    assert!(experts.iter().all(|expert| expert["steps"] == 8), "24 steps are divided among three experts");
}

#[test]
fn prompts_that_are_cut_away_whole_are_announced() {
    let work = tempfile::tempdir().unwrap();
    let rows = work.path().join("rows.jsonl");
    let row = |i: usize, answer: &str| format!("{{\"input\": \"question {i}\", \"output\": \"{answer}\"}}\n");
    let long = (0..20).map(|i| row(i, "abcdefghijklmnopqrstuvwxyz"));
    fs::write(&rows, long.chain((20..50).map(|i| row(i, "ab"))).collect::<String>()).unwrap();
    let (rows, library) = (rows.display(), work.path().join("l"));
    let ran = words(&format!(
        "train-experts --base pico --library {} --tasks {rows} {QUICK} --set max_steps=1 max_length=8",
        library.display()
    ));
    let said = ran.ok().stderr;
    let lost = said.lines().find(|line| line.contains("lost the whole prompt")).expect(&said);
    assert!(lost.contains("since answers alone have up to 27 tokens and a row has at most 8"), "{lost}");
    let count = |kind: &str| -> usize {
        let line = said.lines().find(|line| line.contains(kind)).expect(&said);
        line.split("`rows`: ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()
    };
    // Test rows are not read.
    let (whole, part) = (count("lost the whole prompt"), count("lost the beginning of the prompt"));
    assert!((10..=20).contains(&whole) && (18..=30).contains(&part), "{said}");
}

#[test]
fn a_part_of_the_rows_without_validation_rows_is_announced() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name).display().to_string();
    for (name, count) in [("train", 12), ("validation", 2)] {
        let row = |i: usize| format!("{{\"input\": \"+1:{name}{i};\", \"output\": \"b\"}}\n");
        fs::write(path(&format!("{name}.jsonl")), (0..count).map(row).collect::<String>()).unwrap();
    }
    let text = "name = \"few\"\ntrain = \"train.jsonl\"\nvalidation = \"validation.jsonl\"\n";
    fs::write(path("few.toml"), text).unwrap();
    let line = format!("train-experts --base pico --library {} --tasks {}", path("l"), path("few.toml"));
    let said = words(&format!("{line} --set max_steps=3 --random-examples 3")).ok().stderr;
    let message = words(&format!("{line} --random-examples 13")).failed(1);
    assert!(message.contains("--random-examples 13: expected at most 12, the number of training rows"), "{message}");
    let without: Vec<&str> = said.lines().filter(|line| line.contains("has no validation rows")).collect();
    assert_eq!(without.len(), 1, "{said}");
    assert!(without[0].contains("expert `examples_2`"), "{said}");
    let line = line.replace(&path("l"), &path("new"));
    let said = words(&format!("{line} --set max_steps=3 eval_steps=0 --random-examples 3 --plan")).ok().stderr;
    assert!(!said.contains("has no validation rows"), "none are wanted: {said}");
    fs::write(path("few.toml"), "name = \"few\"\ntrain = \"train.jsonl\"\n").unwrap();
    for (set, warns) in [("max_steps=3", true), ("max_steps=3 eval_steps=0", false)] {
        let said = words(&format!("{line} --set {set} --plan")).ok().stderr;
        assert_eq!(said.contains("task `few` has no validation rows"), warns, "{said}");
    }
}

#[test]
fn settings_that_do_not_count_are_announced() {
    let work = tempfile::tempdir().unwrap();
    let config = work.path().join("c.toml");
    fs::write(&config, "max_steps = 3\nwarmup_steps = 2\nnum_epochs = 4\n").unwrap();
    let line = format!(
        "train-experts --base pico --library {} --tasks suite:skills/shift_up1 --plan",
        work.path().join("l").display()
    );
    let planned = |options: &str| {
        let ran = words(&format!("{line} {options}")).ok();
        let pass: Value = serde_json::from_str(ran.stdout.lines().next().unwrap()).unwrap();
        (pass["steps"].as_u64().unwrap(), ran.stderr)
    };
    let (one_epoch, said) = planned("--set num_epochs=1 max_steps=-1");
    assert!(one_epoch > 3 && !said.contains("unused"), "{said}");
    let file = format!("--config {}", config.display());
    let (steps, said) = planned(&file);
    assert!(steps == 3 && said.contains("unused settings: num_epochs") && !said.contains("warm-up"), "{said}");
    let (steps, said) = planned(&format!("{file} --set num_epochs=2 warmup_ratio=0.5"));
    assert!(steps == 2 * one_epoch && !said.contains("unused") && !said.contains("warm-up"), "{steps}: {said}");
    let (steps, said) = planned(&format!("{file} --set max_steps=-1"));
    assert!(steps == 4 * one_epoch && !said.contains("unused"), "{steps}: {said}");
    let (steps, said) = planned(&format!("{file} --set max_steps=2"));
    assert!(steps == 2 && said.contains("all steps of 1 expert (at most 2) are warm-up, of warmup_steps=2"), "{said}");
    assert!(planned("--set max_steps=2 warmup_steps=0.5 warmup_ratio=0.1").1.contains("unused settings: warmup_ratio"));
}

#[test]
fn a_single_step_trains() {
    let work = tempfile::tempdir().unwrap();
    for (steps, warmup) in [(1, Value::from(0)), (2, Value::Null)] {
        let root = work.path().join(steps.to_string());
        train(&root, &format!("--set max_steps={steps} --set learning_rate=1e-2")).ok();
        let library = lorakit_adapter::Library::open(&root).unwrap();
        assert!(library.adapter("shift_up1").unwrap().norm() > 0.0, "{steps}");
        let record: Value =
            serde_json::from_str(&fs::read_to_string(root.join("experts/shift_up1/expert.json")).unwrap()).unwrap();
        assert_eq!(record["settings"]["settings"]["warmup_steps"], warmup, "it is another expert than before");
    }
}

#[test]
fn given_warm_up_steps_are_recorded_where_the_ratio_would_be_shortened() {
    let work = tempfile::tempdir().unwrap();
    let record = |warmup: usize| -> Value {
        let root = work.path().join(warmup.to_string());
        train(&root, &format!("--set max_steps=1 --set warmup_steps={warmup}")).ok();
        serde_json::from_str(&fs::read_to_string(root.join("experts/shift_up1/expert.json")).unwrap()).unwrap()
    };
    let (none, one) = (record(0), record(1));
    assert_eq!([&none, &one].map(|record| &record["settings"]["settings"]["warmup_steps"]), [0, 1]);
    assert_ne!(none["settings_sha256"], one["settings_sha256"]);
    let norm = |warmup: usize| {
        let library = lorakit_adapter::Library::open(&work.path().join(warmup.to_string())).unwrap();
        library.adapter("shift_up1").unwrap().norm()
    };
    assert!(norm(0) > 0.0);
    assert_eq!(norm(1), 0.0, "the only step is warm-up, of rate zero");
}

#[test]
fn experts_that_started_from_several_seeds_are_announced() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l").display().to_string();
    let train = |task: &str, seed: u64| {
        let line = format!("train-experts --base pico --library {library} --tasks suite:skills/{task} {QUICK}");
        words(&format!("{line} --set max_steps=2 --seed {seed}")).ok().stderr
    };
    assert!(!train("pick_first", 0).contains("seed 0"));
    assert!(!train("shift_up1", 0).contains("seed 0"));
    let said = train("shift_up2", 1);
    assert!(said.contains("its expert `pick_first` was initialized with seed 0, and --seed is 1"), "{said}");
    let out = |name: &str| work.path().join(name).display().to_string();
    let eval = format!("eval --base pico --library {library} --limit 1 --metrics loss --tasks suite:skills/shift_up1");
    let adapt = format!("adapt --base pico --library {library} --limit 1 --tasks suite:skills/shift_down1");
    let told = "expert `pick_first` was initialized with seed 0, `shift_up2` with seed 1";
    for (line, is_told) in [
        (format!("cluster --library {library} -k 2 --space parameters --out {}", out("c")), true),
        (format!("cluster --library {library} -k 2 --out {}", out("c")), true),
        (format!("cluster --library {library} -k 2 --experts pick_first,shift_up1 --out {}", out("c")), false),
        (format!("merge --library {library} --method linear --out {}", out("m1")), true),
        (format!("merge --library {library} --method linear:convention=paper --out {}", out("m2")), true),
        (format!("merge --library {library} --method cat --out {}", out("m3")), false),
        (format!("{eval} --router arrow:mixing=separate"), true),
        (format!("{eval} --router arrow"), false),
        (format!("{adapt} --method mean --set max_steps=1 --out {}", out("a")), true),
    ] {
        let said = words(&line).ok().stderr;
        assert_eq!(said.contains(told), is_told, "{line}: {said}");
    }
    // Not for every task.
    let fit = "lorahub:mode=as-published,budget=2";
    for line in [
        format!("{eval} suite:skills/order_left --router {fit}"),
        format!("{adapt} suite:skills/order_left --method {fit} --out {}", out("b")),
    ] {
        let said = words(&line).ok().stderr;
        assert_eq!(said.matches(told).count(), 1, "{line}: {said}");
    }
}

#[test]
fn libraries_accept_one_base_only() {
    let work = tempfile::tempdir().unwrap();
    let (made, plain) = (work.path().join("made"), work.path().join("plain"));
    train(&made, "--set max_steps=1").ok();
    // The shapes of pico with other weights.
    train(&made, "--full --set max_steps=1").ok();
    let other = made.join("models/full");
    let add = |options: &str| words(&format!("library add --library {} {options}", plain.display()));
    let [one, two] = ["shift_up1", "shift_up2"].map(|name| made.join("experts").join(name).display().to_string());
    add(&one).ok();
    let index = || fs::read_to_string(plain.join("library.json")).unwrap();
    let before = index();
    assert!(before.contains("\"base\": null"), "{before}");
    let message = add(&format!("--base {} y={two}", other.display())).failed(1);
    assert!(message.contains("`shift_up1`") && message.contains("fingerprint"), "{message}");
    let line = format!("train-experts --base {} --library {} --tasks {TASKS}", other.display(), plain.display());
    let message = words(&line).failed(1);
    assert!(message.contains("`shift_up1`") && message.contains("fingerprint"), "{message}");
    let line = format!("adapt --base {} --out {} --method no_library", other.display(), plain.display());
    let message = words(&format!("{line} --tasks suite:skills/shift_down1 --set max_steps=1")).failed(1);
    assert!(message.contains("`shift_up1`") && message.contains("fingerprint"), "{message}");
    assert_eq!(index(), before, "a failed command changes nothing");
    add(&format!("--base pico y={two}")).ok();
    assert!(index().contains("fingerprint"));

    let fresh = work.path().join("fresh");
    let message = train(&fresh, "--set target_modules=q_proj,foo").failed(1);
    assert!(message.contains("`foo`") && !fresh.exists(), "{message}");
}

#[test]
fn a_failing_task_does_not_stop_the_others() {
    let work = tempfile::tempdir().unwrap();
    let (library, file, out) = (work.path().join("l"), work.path().join("bad.json"), work.path().join("scores"));
    // A task whose only row is not in the training split.
    let has_none = |row: &usize| {
        fs::write(&file, format!("[{{\"input\": \"+1:a{row};\", \"output\": \"b\"}}]")).unwrap();
        let task = Task::load(&file.display().to_string(), None).unwrap().remove(0);
        task.count(Split::Train) == 0 && task.count(Split::Validation) == 0
    };
    assert!((0..1000).any(|row| has_none(&row)));
    let (base, tasks) = ("--base pico --library", "suite:skills/shift_up1 suite:skills/order_left");
    let line = format!(
        "train-experts --json {base} {} --set max_steps=1 --tasks {} suite:skills/shift_up1",
        library.display(),
        file.display()
    );
    let ran = words(&line);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let statuses = [0, 1].map(|at| document["experts"][at]["status"].as_str().unwrap().to_owned());
    assert_eq!(statuses, ["failed", "trained"]);
    assert!(ran.stderr.contains("error: 1 expert failed") && ran.stderr.contains("no train rows"), "{}", ran.stderr);

    let eval =
        |options: &str| words(&format!("eval --json {base} {} --out {} {options}", library.display(), out.display()));
    let ran = eval(&format!("--tasks {tasks} --limit 2 --router base oracle"));
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(
        (&document["errors"][0]["router"], &document["errors"][0]["task"]),
        (&"oracle".into(), &"order_left".into())
    );
    let written = || serde_json::from_str::<Value>(&fs::read_to_string(out.join("results.json")).unwrap()).unwrap();
    assert_eq!(written()["results"], document["results"]);
    let scored = |router: &str| document["results"][router].as_object().unwrap().len();
    assert_eq!((scored("base"), scored("oracle")), (2, 1));
    assert!(ran.stderr.contains("error: 1 evaluation failed"), "{}", ran.stderr);

    // Kept results keep their configuration.
    eval("--tasks suite:skills/shift_up1 --limit 3 --router base").ok();
    let config = &written()["config"];
    assert_eq!((&config["limit"], &config["earlier"][0]["config"]["limit"]), (&3.into(), &2.into()));
    let kept = serde_json::json!({ "base": ["order_left"], "oracle": ["shift_up1"] });
    assert_eq!(config["earlier"][0]["results"], kept);
    eval(&format!("--tasks {tasks} --limit 3 --router base")).ok();
    eval("--tasks suite:skills/shift_up1 --limit 3 --router oracle").ok();
    let config = &written()["config"];
    assert_eq!(config["earlier"].as_array().unwrap().len(), 1, "configurations without results are removed: {config}");
    assert!(eval("--tasks suite:skills/order_left --router oracle").failed(1).contains("oracle"));
    let nowhere = "eval --base pico --library nolib --router base --tasks suite:skills/order_left";
    assert!(words(nowhere).failed(1).contains("nolib: not a library"));
}

#[test]
fn dtype_is_part_of_the_settings() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    train(&library, "--set max_steps=2").ok();
    // Both compute in f32.
    let again = train(&library, "--set max_steps=2 --dtype f32").json();
    assert!(again["experts"].as_array().unwrap().iter().all(|expert| expert["status"] == "finished before"));
    let message = train(&library, "--set max_steps=2 --dtype f16").failed(1);
    assert!(message.contains("its dtype differs"), "{message}");
    train(&library, "--set max_steps=2 --dtype f16 --restart").ok();
    let message = train(&library, "--set max_steps=2").failed(1);
    assert!(message.contains("its dtype differs"), "{message}");
}

#[test]
fn outputs_create_their_folders() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("x/y/pico");
    words(&format!("base write --out {}", folder.display())).ok();
    words(&format!("base info {}", folder.display())).ok();
}
