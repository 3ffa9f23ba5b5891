//! Ways to build a library other than one expert per task: full fine-tuning, two-stage MBC, random examples, skills
//! with routing (Poly, MHR), and clusters by embedding, with the binary and its bundled base.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{Ran, words};
use lorakit_task::{Split, Task};
use serde_json::Value;
use std::fs;
use std::path::Path;

const TASKS: &str = "suite:skills/shift_up1 suite:skills/shift_up2 suite:skills/order_reverse suite:skills/order_left";
const QUICK: &str = "--set batch_size=4 --set dropout=0 --set max_grad_norm=1 --set eval_steps=0";

fn train(library: &Path, options: &str) -> Ran {
    words(&format!(
        "train-experts --json --base pico --library {} --tasks {TASKS} {QUICK} {options}",
        library.display()
    ))
}

fn names(document: &Value, list: &str) -> Vec<String> {
    document[list].as_array().unwrap().iter().map(|entry| entry["expert"].as_str().unwrap().to_owned()).collect()
}

/// The mean loss of the router over the tasks.
fn loss(base: &str, options: &str, router: &str) -> f64 {
    let scores =
        words(&format!("eval --json --base {base} {options} --tasks {TASKS} --limit 4 --router {router}")).json();
    let tasks = scores["results"][router].as_object().unwrap();
    tasks.values().map(|task| task["metrics"]["loss"]["value"].as_f64().unwrap()).sum::<f64>() / tasks.len() as f64
}

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
fn two_stage_mbc() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    let options = "--mbc 2 --set max_steps=10 --set learning_rate=1e-2";
    let trained = train(&library, options).json();
    assert_eq!(names(&trained["private"], "experts").len(), 4);
    assert!(trained["private"]["experts"].as_array().unwrap().iter().all(|expert| expert["steps"] == 4));
    assert_eq!(names(&trained, "experts"), ["c0", "c1"]);
    for expert in trained["experts"].as_array().unwrap() {
        assert_eq!(expert["steps"].as_u64().unwrap(), 6 * expert["tasks"].as_array().unwrap().len() as u64);
    }
    let again = train(&library, options).json();
    let before = |document: &Value| {
        document["experts"].as_array().unwrap().iter().all(|expert| expert["status"] == "finished before")
    };
    assert!(before(&again) && before(&again["private"]));
    // The same in separate commands: two trainings, with clustering in between.
    let (private, file) = (work.path().join("private"), library.join("clusters.json"));
    train(&private, "--set max_steps=4 --set learning_rate=1e-2").ok();
    let by_hand = work.path().join("c.json");
    words(&format!("cluster --library {} -k 2 --out {}", private.display(), by_hand.display())).ok();
    let clusters =
        |file: &Path| serde_json::from_str::<Value>(&fs::read_to_string(file).unwrap()).unwrap()["tasks"].clone();
    assert_eq!(clusters(&by_hand), clusters(&file));
    let none = work.path().join("none");
    assert!(train(&none, "--mbc 9").failed(1).contains("--mbc 9: expected at most 4, the number of tasks"));
    assert!(!none.exists(), "refused before the first stage");
    let message = train(&library, "--mbc 2 --set max_steps=1").failed(1);
    assert!(message.contains("`max_steps` is 1"), "{message}");
    // Other clusters do not replace those that the experts were trained on.
    let before = fs::read(&file).unwrap();
    let message = train(&library, &options.replace("--mbc 2", "--mbc 3")).failed(1);
    assert!(message.contains("clusters.json") && message.contains("--restart"), "{message}");
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_restart_with_fewer_clusters_removes_the_experts_of_the_others() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    let options = |k: usize| format!("--mbc {k} --set max_steps=5 --set learning_rate=1e-2");
    let listed = || -> Vec<String> {
        let document = words(&format!("library ls --json --library {}", library.display())).json();
        document["experts"].as_array().unwrap().iter().map(|own| own["name"].as_str().unwrap().to_owned()).collect()
    };
    train(&library, &options(4)).ok();
    assert_eq!(listed(), ["c0", "c1", "c2", "c3"]);
    // Another expert under the name of a cluster is the user's.
    let other = library.join("private/experts/shift_up1");
    fs::remove_dir_all(library.join("experts/c3")).unwrap();
    let clusters: Value = serde_json::from_str(&fs::read_to_string(library.join("clusters.json")).unwrap()).unwrap();
    let is_other = clusters["tasks"]["c3"] != serde_json::json!(["shift_up1"]);
    let name = if is_other { "shift_up1" } else { "shift_up2" };
    words(&format!("library add --library {} c3={}", library.display(), other.with_file_name(name).display())).ok();
    let said = train(&library, &format!("{} --restart", options(2))).ok().stderr;
    assert!(said.contains("c2: removed") && !said.contains("c3: removed"), "{said}");
    assert_eq!(listed(), ["c0", "c1", "c3"]);
}

#[test]
fn the_plan_of_both_stages_of_mbc_shows_what_is_known() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    let options = "--mbc 2 --set max_steps=10 --set learning_rate=1e-2";
    let plan = || -> Value { train(&library, &format!("{options} --plan")).json() };
    let of = |document: &Value, stage: &str| -> Vec<Value> {
        let passes = document["passes"].as_array().unwrap().iter();
        passes.filter(|pass| pass["stage"] == stage).cloned().collect()
    };
    let before = plan();
    assert!(!library.exists(), "a plan writes nothing");
    assert_eq!((&before["clusters_known"], of(&before, "clusters")), (&Value::from(false), vec![]));
    let first = of(&before, "private");
    assert_eq!(first.iter().map(|pass| pass["experts"].as_array().unwrap().len()).sum::<usize>(), 4);
    assert!(first.iter().all(|pass| pass["steps"] == 4 && pass["finished"] == false), "{first:?}");
    let lines = words(&format!(
        "train-experts --base pico --library {} --tasks {TASKS} {QUICK} {options} --plan",
        library.display()
    ))
    .ok();
    assert!(lines.stdout.lines().all(|line| line.starts_with("{\"stage\":\"private\"")), "{}", lines.stdout);
    assert!(lines.stderr.contains("known once the experts per task are clustered"), "{}", lines.stderr);
    train(&library, options).ok();
    let after = plan();
    assert_eq!(after["clusters_known"], true);
    assert!(after["passes"].as_array().unwrap().iter().all(|pass| pass["finished"] == true), "{after}");
    let clustered: Vec<Value> =
        of(&after, "clusters").iter().flat_map(|pass| pass["experts"].as_array().unwrap().clone()).collect();
    assert_eq!(clustered, ["c0", "c1"]);
    // A number that is to be chosen may be the one of the file.
    let auto = train(&library, &format!("{} --plan", options.replace("--mbc 2", "--mbc auto"))).json();
    assert_eq!(auto["clusters_known"], true);
    // Another number of clusters is refused, as by the command itself.
    let other = train(&library, &format!("{} --plan", options.replace("--mbc 2", "--mbc 3"))).failed(1);
    assert!(other.contains("clusters.json") && other.contains("--restart"), "{other}");
    // Trained anew, the first stage gives other clusters.
    let anew = train(&library, &format!("{options} --plan --restart")).json();
    assert_eq!((&anew["clusters_known"], of(&anew, "clusters")), (&Value::from(false), vec![]));
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
    let without: Vec<&str> = said.lines().filter(|line| line.contains("has no validation rows")).collect();
    assert_eq!(without.len(), 1, "{said}");
    assert!(without[0].contains("expert `examples_2`"), "{said}");
}

#[test]
fn tasks_in_no_cluster_are_announced() {
    let work = tempfile::tempdir().unwrap();
    let (file, library) = (work.path().join("c.json"), work.path().join("l"));
    let two = "suite:skills/shift_up1 suite:skills/order_left";
    words(&format!("cluster --method random -k 1 --tasks {two} --out {}", file.display())).ok();
    let said = train(&library, &format!("--set max_steps=1 --clusters {}", file.display())).ok().stderr;
    assert!(said.contains("2 tasks of --tasks") && said.contains("`shift_up2`, `order_reverse`"), "{said}");
    let options = format!("-k 1 --library {} --out {}", library.display(), file.display());
    let refused = words(&format!("cluster --method random {options} --tasks nosuchfile.jsonl")).failed(2);
    assert!(refused.contains("--method random") && refused.contains("--tasks"), "{refused}");
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
fn clusters_by_embedding() {
    let work = tempfile::tempdir().unwrap();
    let (file, library) = (work.path().join("c.json"), work.path().join("l"));
    let cluster = |options: &str| {
        words(&format!("cluster --json --method embedding --tasks {TASKS} -k 2 --out {} {options}", file.display()))
    };
    let found = cluster("--base pico").json();
    let sets: Vec<&str> =
        found["clusters"].as_array().unwrap().iter().map(|c| c["tasks"][0].as_str().unwrap()).collect();
    assert_eq!(sets, ["order_left", "shift_up1"]);
    assert_eq!(found["clusters"][1]["tasks"][1], "shift_up2");
    assert_eq!(cluster("").code, 2, "no base");

    train(&library, "--set max_steps=1").ok();
    let of_experts = cluster(&format!("--base pico --library {}", library.display())).json();
    assert_eq!(of_experts["report"]["clusters"].as_array().unwrap().len(), 2);
    let clusters: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(clusters["method"], "embedding");
    assert_eq!(clusters["clusters"]["c0"], serde_json::json!(["order_left", "order_reverse"]));
    train(&work.path().join("k"), &format!("--set max_steps=1 --clusters {}", file.display())).ok();
    let one = words(&format!(
        "cluster --method embedding --base pico --tasks suite:skills/shift_up1 -k 1 --out {} --library {}",
        file.display(),
        library.display()
    ));
    let message = one.failed(1);
    assert!(message.contains("is missing from --tasks"), "{message}");
}

#[test]
fn poly_and_mhr() {
    let work = tempfile::tempdir().unwrap();
    for (name, splits) in [("poly", 1), ("mhr", 4)] {
        let library = work.path().join(name);
        let options = format!("--{name} 3 --set max_steps=6 --set learning_rate=1e-2 --set splits=4");
        let trained = train(&library, &options).json();
        assert_eq!((&trained["experts"][0]["expert"], &trained["experts"][0]["steps"]), (&name.into(), &24.into()));
        assert_eq!(train(&library, &options).json()["experts"][0]["status"], "finished before");
        let routing = fs::read_to_string(library.join("routers").join(name).join("router.json")).unwrap();
        let routing: Value = serde_json::from_str(&routing).unwrap();
        assert_eq!(routing["experts"].as_array().unwrap().len(), 3);
        assert_eq!((&routing["of"]["splits"], &routing["of"]["tasks"][3]), (&splits.into(), &"order_left".into()));
        let listed = words(&format!("library ls --json --library {}", library.display())).json();
        assert_eq!(listed["experts"].as_array().unwrap().len(), 3);
        assert_eq!(words(&format!("library check --library {}", library.display())).code, 0);

        let slots = format!("--library {}", library.display());
        let own = loss("pico", &slots, name);
        let mean = loss("pico", &slots, &format!("{name}:unseen=mean"));
        assert!(own < loss("pico", "", "base"), "training must help");
        assert_eq!(own, mean, "a task trained on has its own routing");
        // The routing of a new task is fitted, and beats the mean routing on its training rows.
        let fresh = |router: &str| {
            let fixed =
                format!("eval --json --base pico {slots} --tasks suite:skills/shift_down1 --limit 8 --split train");
            let scores = words(&format!("{fixed} --router {router}")).json();
            scores["results"][router]["shift_down1"]["metrics"]["loss"]["value"].as_f64().unwrap()
        };
        let fitted = fresh(&format!("{name}:rows=8,steps=30"));
        assert!(fitted < fresh(&format!("{name}:unseen=mean")), "{name}: {fitted}");
        // Without a task, the mean is used.
        let generate = format!("generate --base pico {slots} --prompt x --max-new-tokens 2 --router {name}");
        assert!(words(&generate).failed(1).contains("--fit"));
        words(&format!("{generate}:unseen=mean")).ok();
    }
}

#[test]
fn a_task_keeps_its_own_routing_when_its_rows_were_fitted_before() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    train(&library, "--poly 2 --set max_steps=6 --set learning_rate=1e-2").ok();
    let eval = |options: &str| {
        words(&format!("eval --json --base pico --library {} --limit 4 --router {options}", library.display())).json()
    };
    // The rows of a task that the skills were trained on, as given rows for another one.
    let fitted = "poly:rows=4,steps=2";
    eval(&format!("{fitted} --tasks suite:skills/order_left --fit suite:skills/shift_up1"));
    let scores = eval(&format!("{fitted} poly:unseen=mean --tasks suite:skills/shift_up1"));
    let of = |router: &str| scores["results"][router]["shift_up1"]["metrics"]["loss"]["value"].as_f64().unwrap();
    assert_eq!(of(fitted), of("poly:unseen=mean"), "both are the routing of its training");
}

#[test]
fn skills_do_not_replace_experts() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    train(&library, "--set max_steps=1").ok();
    let own = format!("{}/experts/shift_up1", library.display());
    words(&format!("library add --library {} poly_1={own}", library.display())).ok();
    let message = train(&library, "--poly 2 --set max_steps=1").failed(1);
    assert!(message.contains("`poly_1`") && message.contains("--restart"), "{message}");
    train(&library, "--poly 3 --restart --set max_steps=1").ok();
    train(&library, "--poly 2 --restart --set max_steps=1").ok();
    let listed = words(&format!("library ls --json --library {}", library.display())).json();
    let names: Vec<&str> = listed["experts"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["order_left", "order_reverse", "poly_0", "poly_1", "shift_up1", "shift_up2"]);
    let message = train(&library, "--mhr 2 --set splits=7").failed(1);
    assert!(message.contains("cannot be split in 7"), "{message}");
}

#[test]
fn routings_refuse_other_skills() {
    let work = tempfile::tempdir().unwrap();
    let (library, other) = (work.path().join("l"), work.path().join("other"));
    let options = "--poly 2 --set max_steps=2";
    train(&library, options).ok();
    train(&other, &format!("{options} --set learning_rate=1e-2")).ok();
    let slots = format!("--library {}", library.display());
    let eval = || {
        words(&format!(
            "eval --json --base pico {slots} --limit 2 --tasks suite:skills/shift_down1 --router poly:rows=4,steps=2"
        ))
    };
    let check = || words(&format!("library check --json {slots}"));
    assert!(eval().ok().stderr.contains("fitting to rows"));
    assert!(!eval().ok().stderr.contains("fitting to rows"), "the fit is cached");
    assert_eq!(check().json()["routers"].as_array().unwrap().len(), 2);

    // With another routing of the same skills, state fitted from the first is not used.
    let file = library.join("routers/poly/router.json");
    let record = fs::read_to_string(&file).unwrap();
    fs::write(&file, record.replace("order_left", "order_gone")).unwrap();
    assert!(eval().ok().stderr.contains("fitting to rows"), "another routing requires a new fit");
    fs::write(&file, &record).unwrap();

    // State after a kill during retraining, when the first skill was already replaced.
    let skill = |library: &Path| library.join("experts/poly_0");
    fs::remove_dir_all(skill(&library)).unwrap();
    fs::create_dir(skill(&library)).unwrap();
    for entry in fs::read_dir(skill(&other)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), skill(&library).join(entry.file_name())).unwrap();
    }
    let message = eval().failed(1);
    assert!(
        message.contains("routers/poly") && message.contains("poly_0") && message.contains("--restart"),
        "{message}"
    );
    let checked = check();
    assert_eq!(checked.code, 1);
    assert!(checked.stderr.contains("1 router of "), "{}", checked.stderr);
    let document: Value = serde_json::from_str(&checked.stdout).unwrap();
    let found = document["routers"].as_array().unwrap();
    let error = |router: &Value| router["error"].as_str().unwrap_or_default().contains("--restart");
    assert_eq!(
        found.iter().filter(|router| error(router)).map(|router| &router["router"]).collect::<Vec<_>>(),
        ["poly"]
    );
    let stale = |router: &&Value| router["notices"][0]["text"].as_str().is_some_and(|text| text.contains("not used"));
    assert_eq!(found.iter().filter(stale).count(), found.len() - 1, "{document}");
    train(&library, &format!("{options} --restart")).ok();
    eval().ok();

    // State after a kill during a first training: skills without a routing.
    fs::remove_dir_all(library.join("routers/poly")).unwrap();
    let message = eval().failed(1);
    assert!(message.contains("did not end") && message.contains("--poly"), "{message}");
    assert_eq!(check().code, 0);

    let learned = fs::read_dir(library.join("routers")).unwrap().map(|entry| entry.unwrap().path());
    let learned = learned.into_iter().find(|path| !path.ends_with("poly")).unwrap();
    fs::write(learned.join("router.safetensors"), "damaged").unwrap();
    let damaged = check();
    assert_eq!(damaged.code, 1);
    assert!(damaged.stdout.contains("router.safetensors: has the sha256"), "{}", damaged.stdout);
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
fn silhouettes_are_of_the_clustered_space() {
    let work = tempfile::tempdir().unwrap();
    let library = work.path().join("l");
    train(&library, "--set max_steps=12 --set learning_rate=2e-2 --set warmup_ratio=0.5").ok();
    let line = format!("cluster -k 2 --library {} --out {}", library.display(), work.path().join("c.json").display());
    for space in ["parameters", "change", "delta"] {
        let report = words(&format!("{line} --json --space {space}")).json()["report"].clone();
        assert_eq!(report["space"], space);
        let own = report["spaces"].as_array().unwrap().iter().find(|own| own["space"] == space).unwrap();
        let clusters = report["clusters"].as_array().unwrap().iter();
        let members = clusters.flat_map(|cluster| cluster["members"].as_array().unwrap());
        let sum: f64 = members.map(|member| member["silhouette"].as_f64().unwrap()).sum();
        assert!((sum / 4.0 - own["silhouette"].as_f64().unwrap()).abs() < 1e-9, "{report}");
        let text = words(&format!("{line} --space {space}")).ok().stdout;
        let mean = text.split("mean silhouette, ").nth(1).unwrap().split(',').next().unwrap();
        assert!(text.matches(mean).count() > 1, "{mean} is not in both the table and the sentence: {text}");
    }
    assert_eq!(words(&format!("{line} --json --method random")).json()["report"]["space"], "delta");
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
fn tasks_are_clustered_without_a_library() {
    let work = tempfile::tempdir().unwrap();
    let file = |form: &str| {
        let out = work.path().join("made").join(form);
        let options = format!("--method random -k 2 --format {form} --out {}", out.display());
        words(&format!("cluster --tasks {TASKS} {options}")).ok();
        serde_json::from_str::<Value>(&fs::read_to_string(out).unwrap()).unwrap()
    };
    assert!(file("lorakit").get("method").is_some());
    let mttl = file("mttl");
    assert!(mttl.get("method").is_none() && mttl.to_string().contains("order_left"), "{mttl}");
}

#[test]
fn outputs_create_their_folders() {
    let work = tempfile::tempdir().unwrap();
    let folder = work.path().join("x/y/pico");
    words(&format!("base write --out {}", folder.display())).ok();
    words(&format!("base info {}", folder.display())).ok();
}
