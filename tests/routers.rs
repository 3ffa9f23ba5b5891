//! Fitted routers with the binary: what they are fitted to, and what the library caches.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;

use binary::{Ran, run};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;

const TASKS: [&str; 3] = ["suite:skills/shift_up1", "suite:skills/order_reverse", "suite:skills/pick_first"];
const FEW_STEPS: [&str; 8] =
    ["--set", "max_steps=6", "--set", "learning_rate=1e-2", "--set", "batch_size=8", "--set", "eval_steps=0"];

/// A library over the bundled base.
struct Work(tempfile::TempDir);

impl Work {
    fn new(tasks: &[&str]) -> Self {
        let work = Self(tempfile::tempdir().unwrap());
        let library = work.library();
        let fixed = ["train-experts", "--base", "pico", "--library", &library, "--tasks"];
        run(fixed.iter().copied().chain(tasks.iter().copied()).chain(FEW_STEPS)).ok();
        work
    }

    fn library(&self) -> String {
        self.0.path().join("library").display().to_string()
    }

    fn eval(&self, routers: &[&str], options: &[&str]) -> Ran {
        let library = self.library();
        let fixed = ["eval", "--json", "--base", "pico", "--library", &library, "--limit", "3", "--router"];
        run(fixed.iter().copied().chain(routers.iter().copied()).chain(options.iter().copied()))
    }

    /// The state of a router that is fitted to rows, which no call before was, and what stderr said.
    fn fitted(&self, router: &str, task: &str, fit: &[&str]) -> (Vec<u8>, String) {
        let before = self.kept();
        let ran = self.eval(&[router], &[&["--tasks", task, "--metrics", "loss", "--fit"], fit].concat()).ok();
        let new: Vec<PathBuf> = self.kept().into_iter().filter(|folder| !before.contains(folder)).collect();
        assert_eq!(new.len(), 1, "{new:?}");
        (fs::read(new[0].join("router.safetensors")).unwrap(), ran.stderr)
    }

    /// The folders of cached routers.
    fn kept(&self) -> Vec<PathBuf> {
        let Ok(folder) = fs::read_dir(self.0.path().join("library/routers")) else { return Vec::new() };
        let mut folders: Vec<PathBuf> = folder.map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        folders
    }
}

fn loss(document: &Value, router: &str, task: &str) -> f64 {
    document["results"][router][task]["metrics"]["loss"]["value"].as_f64().unwrap()
}

#[test]
fn router_caches_are_reused() {
    let work = Work::new(&TASKS);
    let tasks = [&["--tasks"], &TASKS[..]].concat();
    let first = work.eval(&["cm"], &tasks);
    assert!(first.stderr.contains("fitting to rows"), "{}", first.stderr);
    let first = first.json();
    let kept = work.kept();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let record: Value = serde_json::from_str(&fs::read_to_string(kept[0].join("router.json")).unwrap()).unwrap();
    assert_eq!(record["of"]["rows"]["tasks"].as_array().unwrap().len(), 3);
    let weights = fs::read(kept[0].join("router.safetensors")).unwrap();

    let again = work.eval(&["cm"], &tasks);
    assert!(!again.stderr.contains("fitting to rows"), "{}", again.stderr);
    assert_eq!(first["results"], again.json()["results"]);

    // Other settings of the fit and other rows give other folders.
    work.eval(&["cm:rows=3"], &tasks).ok();
    assert_eq!(work.kept().len(), 2);
    work.eval(&["cm"], &[&tasks[..], &["--fit"], &TASKS[..]].concat()).ok();
    assert_eq!(work.kept().len(), 2, "naming the experts' own tasks gives the same rows");
    let unused = work.eval(&["uniform"], &[&tasks[..], &["--fit"], &TASKS[..]].concat()).ok().stderr;
    assert!(unused.contains("--fit is not used"), "{unused}");

    // A damaged cache is fitted again, to the same bytes.
    fs::write(kept[0].join("router.safetensors"), b"damaged").unwrap();
    let mended = work.eval(&["cm"], &tasks);
    assert!(mended.stderr.contains("fitting to rows"), "{}", mended.stderr);
    mended.ok();
    assert_eq!(fs::read(kept[0].join("router.safetensors")).unwrap(), weights);
}

#[test]
fn what_experts_saw_is_part_of_what_a_router_is_fitted_to() {
    let work = Work::new(&TASKS[..2]);
    let is_fitted = |router: &str| {
        let said = work.eval(&[router], &["--tasks", TASKS[0], "--metrics", "loss"]).ok().stderr;
        said.contains("fitting to rows")
    };
    let routers = ["evidence", "scaled_uniform:rows=3", "cm"];
    assert_eq!(routers.map(is_fitted), [true; 3]);
    assert_eq!(routers.map(is_fitted), [false; 3]);
    // A record of one row fewer, which may then be among those that settings are chosen on.
    let file = work.0.path().join("library/experts/shift_up1/expert.json");
    let text = fs::read_to_string(&file).unwrap();
    let record: Value = serde_json::from_str(&text).unwrap();
    let rows = record["tasks"][0]["train_rows"].as_str().unwrap();
    fs::write(&file, text.replace(rows, &rows[12..])).unwrap();
    assert_eq!(routers.map(is_fitted), [true, true, false]);
}

#[test]
fn a_library_that_another_process_changes_is_routed_without_waiting_for_it() {
    let work = Work::new(&TASKS[..2]);
    let eval = || work.eval(&["cm"], &["--tasks", TASKS[0], "--metrics", "loss"]).ok().stderr;
    let held = lorakit_adapter::Library::open(&work.0.path().join("library")).unwrap().lock().unwrap();
    let said = eval();
    assert!(said.contains("cm is not kept: another process is changing the library"), "{said}");
    assert_eq!(work.kept(), Vec::<PathBuf>::new());
    drop(held);
    eval();
    assert_eq!(work.kept().len(), 1);
}

#[test]
fn routers_are_fitted_again_under_another_tokenizer() {
    let work = Work::new(&TASKS);
    let base = work.0.path().join("base");
    let (library, base_name) = (work.library(), base.display().to_string());
    run(["base", "write", "--out", &base_name]).ok();
    let eval = |base: &str| {
        let fixed =
            ["eval", "--library", &library, "--router", "cm", "--limit", "2", "--metrics", "loss", "--base", base];
        run(fixed.into_iter().chain(["--tasks", TASKS[0]])).ok().stderr
    };
    assert!(eval("pico").contains("fitting to rows"));
    assert!(!eval(&base_name).contains("fitting to rows"), "it is the same base");
    let file = base.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    tokenizer["post_processor"] = Value::Null;
    fs::write(file, tokenizer.to_string()).unwrap();
    assert!(eval(&base_name).contains("fitting to rows"));
    assert_eq!(work.kept().len(), 2);
}

#[test]
fn a_task_of_a_file_is_found_without_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    for name in ["a", "b"] {
        let rows: String = (0..20).map(|i| format!("{{\"input\": \"{name}{i}\", \"output\": \"{name}\"}}\n")).collect();
        fs::write(path(&format!("{name}.jsonl")), rows).unwrap();
    }
    let of = |name: &str| format!("[[task]]\nname = \"{name}\"\nrows = \"{name}.jsonl\"\n");
    fs::write(path("t.toml"), of("a") + &of("b")).unwrap();
    let work = Work::new(&[&path("t.toml:a"), TASKS[1]]);
    fs::remove_file(path("b.jsonl")).unwrap();
    work.eval(&["cm"], &["--tasks", TASKS[1]]).ok();
}

#[test]
fn missing_or_changed_tasks_suggest_fit() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("plus.jsonl");
    let rows: String = (0..60).map(|i| format!("{{\"input\": \"+1:a{i};\", \"output\": \"b{i}\"}}\n")).collect();
    fs::write(&file, &rows).unwrap();
    let path = file.display().to_string();
    let work = Work::new(&[&path, TASKS[1]]);

    let other = ["--tasks", TASKS[1]];
    fs::write(&file, rows.replacen("b0", "c0", 1)).unwrap();
    let message = work.eval(&["cm"], &other).failed(1);
    for part in ["plus", &path, "sha256", "--fit"] {
        assert!(message.contains(part), "{message}");
    }
    fs::remove_file(&file).unwrap();
    let message = work.eval(&["cm"], &other).failed(1);
    for part in ["plus", &path, "--fit"] {
        assert!(message.contains(part), "{message}");
    }
    let moved = folder.path().join("moved.jsonl");
    fs::write(&moved, &rows).unwrap();
    let message = work.eval(&["cm"], &[&other[..], &["--fit", TASKS[1]]].concat()).failed(1);
    assert!(message.contains("--fit") && message.contains("plus"), "{message}");
    let given = format!("plus={}", moved.display());
    work.eval(&["cm"], &[&other[..], &["--fit", &given, TASKS[1]]].concat()).ok();
}

#[test]
fn routers_are_not_fitted_to_evaluated_rows() {
    let work = Work::new(&TASKS);
    let path = |name: &str| work.0.path().join(name).display().to_string();
    let rows: String = (0..40).map(|i| format!("{{\"input\": \"x{i}\", \"output\": \"y\"}}\n")).collect();
    fs::write(path("rows.jsonl"), rows).unwrap();
    for (name, seed) in [("scored", 0), ("other", 1)] {
        let text = format!("name = \"{name}\"\nrows = \"rows.jsonl\"\nsplit_seed = {seed}\n");
        fs::write(path(&format!("{name}.toml")), text).unwrap();
    }
    let (scored, other) = (path("scored.toml"), path("other.toml"));
    let refused = work.eval(&["cat:steps=1"], &["--tasks", &scored, "--fit", &other]).failed(1);
    for part in ["--fit other", "split_seed 1", "`scored`"] {
        assert!(refused.contains(part), "{refused}");
    }
    work.eval(&["cat:steps=1"], &["--tasks", &scored, "--fit", &scored]).ok();
}

#[test]
fn routers_generate() {
    let work = Work::new(&TASKS);
    let library = work.library();
    let fixed = ["generate", "--base", "pico", "--library", &library, "--prompt", "+1:dkwm;\n", "--json"];
    let text = |router: &str| run(fixed.iter().copied().chain(["--router", router])).json();
    for router in ["cm", "spectr", "lag", "logo", "retrieve"] {
        assert!(text(router)["tokens"].as_u64().unwrap() > 0, "{router}");
    }
    let scores = work.eval(&["cm", "oracle", "base"], &["--tasks", TASKS[0]]).json();
    assert!(loss(&scores, "cm", "shift_up1").is_finite());
}

#[test]
fn newer_routers_over_one_expert_are_that_expert() {
    let work = Work::new(&TASKS[..1]);
    let newer = ["spectr", "lag", "logo", "retrieve"];
    let routers = [&newer[..], &["oracle", "base"]].concat();
    let scores = work.eval(&routers, &["--tasks", TASKS[0]]).json();
    let of = |router: &str| loss(&scores, router, "shift_up1");
    assert!((of("oracle") - of("base")).abs() > 1e-3);
    for router in newer {
        assert!((of(router) - of("oracle")).abs() < 1e-4, "{router}: {} {}", of(router), of("oracle"));
    }
}

#[test]
fn prompt_routers_decide_per_row() {
    let work = Work::new(&TASKS);
    let tasks = [&["--tasks"], &TASKS[..]].concat();
    let routers = ["tp", "tfidf", "retrieve:top_k=1", "evidence", "oracle", "base"];
    let scores = work.eval(&routers, &[&tasks[..], &["--split", "validation"]].concat()).json();
    // All distinguish three tasks of three families: the classifiers then equal the oracle, and `evidence` is close to it.
    for task in ["shift_up1", "order_reverse", "pick_first"] {
        let of = |router: &str| loss(&scores, router, task);
        assert_ne!(of("oracle"), of("base"));
        for router in ["tp", "tfidf", "retrieve:top_k=1"] {
            assert!(
                (of(router) - of("oracle")).abs() < 1e-4,
                "{task}: {router} {} oracle {}",
                of(router),
                of("oracle")
            );
        }
        assert!(of("evidence") < 0.5 * (of("oracle") + of("base")), "{task}: {}", of("evidence"));
    }
    // All are fitted to the experts' own tasks.
    for router in ["tp", "tfidf", "retrieve", "evidence"] {
        let message = work.eval(&[router], &["--tasks", TASKS[0], "--fit", "suite:skills/digits_add1"]).failed(1);
        assert!(message.contains("digits_add1"), "{router}: {message}");
    }
}

#[test]
fn the_mean_gets_the_scale_that_suits_validation_rows_best() {
    let work = Work::new(&TASKS);
    let scaled = "scaled_uniform:rows=3";
    let fixed = ["uniform:scale=0.25", "uniform:scale=0.5", "uniform", "uniform:scale=2", "uniform:scale=4"];
    let options = [&["--split", "validation", "--metrics", "loss", "--tasks"], &TASKS[..]].concat();
    let ran = work.eval(&[&[scaled], &fixed[..]].concat(), &options).ok();
    // The evaluated rows are those that the scale is chosen on.
    assert!(ran.stderr.contains("fitted to validation rows"), "{}", ran.stderr);
    let scores = ran.json();
    let sum = |router: &str| {
        ["shift_up1", "order_reverse", "pick_first"].map(|task| loss(&scores, router, task)).iter().sum::<f64>()
    };
    for router in fixed {
        assert!(sum(scaled) < sum(router) + 1e-4, "{router}: {scores}");
    }
    let record = work.kept()[0].join("router.json");
    let record: Value = serde_json::from_str(&fs::read_to_string(record).unwrap()).unwrap();
    assert_eq!(record["of"]["rows"]["split"], "validation");
}

#[test]
fn evidence_falls_back_on_what_suits_rows_without_their_own_expert() {
    let tasks = ["suite:skills/shift_up1", "suite:skills/join_dash"];
    let work = Work::new(&tasks);
    let options = [&["--split", "validation", "--metrics", "loss", "--tasks"], &tasks[..]].concat();
    let ran = work.eval(&["evidence", "base", "arrow:top_k=all"], &options).ok();
    let said = ran.stderr.clone();
    let scores = ran.json();
    let sum = |router: &str| ["shift_up1", "join_dash"].map(|task| loss(&scores, router, task)).iter().sum::<f64>();
    // Arrow has the rows' own experts, which nothing has for the prompts that the fallback is for.
    assert!(sum("arrow:top_k=all") < sum("base"), "{scores}");
    assert!(said.contains("fallback=base"), "{said}");
}

/// An expert per task, with a rank and modules of its own.
fn train_unequal(library: &str, tasks: &[&str; 3]) {
    let kinds = [("2", "q_proj,v_proj"), ("5", "q_proj,k_proj,up_proj"), ("3", "v_proj,o_proj")];
    for (task, (rank, modules)) in tasks.iter().zip(kinds) {
        let (task, rank) = (format!("suite:skills/{task}"), format!("rank={rank}"));
        let modules = format!("target_modules={modules}");
        let fixed = ["train-experts", "--base", "pico", "--library", library, "--tasks", &task];
        let settings = ["--set", "max_steps=30", "learning_rate=1e-2", "batch_size=8", "eval_steps=0", &rank, &modules];
        run(fixed.iter().chain(&settings).copied()).ok();
    }
}

#[test]
fn the_fallback_is_the_best_over_libraries_without_each_expert() {
    for tasks in [["shift_up1", "shift_up2", "shift_down1"], ["join_dash", "join_dot", "shift_up1"]] {
        let work = Work(tempfile::tempdir().unwrap());
        train_unequal(&work.library(), &tasks);
        let own = format!("suite:skills/{}", tasks[0]);
        let said = work.eval(&["evidence"], &["--split", "all", "--metrics", "loss", "--tasks", &own]).ok().stderr;

        // The same rows over libraries that never had their expert.
        let fallbacks = ["base", "uniform", "arrow:top_k=all"];
        let mut losses = [0.0; 3];
        for task in tasks {
            let others = work.0.path().join(format!("without_{task}")).display().to_string();
            let rest = tasks.iter().filter(|other| **other != task);
            let folders = rest.map(|other| format!("{}/experts/{other}", work.library()));
            let fixed = ["library", "add", "--library", &others, "--base", "pico"].map(str::to_owned);
            run(fixed.into_iter().chain(folders)).ok();
            let name = format!("suite:skills/{task}");
            let options = ["--split", "validation", "--limit", "4", "--metrics", "loss", "--json"];
            let fixed = ["eval", "--base", "pico", "--library", &others, "--tasks", &name, "--router"];
            let scores = run(fixed.iter().chain(&fallbacks).chain(&options).copied()).json();
            for (sum, router) in losses.iter_mut().zip(fallbacks) {
                *sum += loss(&scores, router, task);
            }
        }
        assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
        let lowest = (0..3).min_by(|a, b| losses[*a].total_cmp(&losses[*b])).unwrap();
        let expected = format!("fallback={}", ["base", "uniform", "arrow"][lowest]);
        assert!(said.contains(&expected), "{losses:?}: {said}");
        // Both are chosen in one of the libraries.
        assert_eq!(lowest, usize::from(tasks[2] == "shift_down1"), "{losses:?}");
    }
}

#[test]
fn evidence_reads_the_answers_of_validation_rows_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    // Two tasks of a constant answer each; `train` and `validation` are the answers in these splits, if not the right ones.
    let write = |name: &str, answer: &str, train: Option<&str>, validation: Option<&str>| -> String {
        fs::create_dir_all(path(name)).unwrap();
        let place = |file: &str| path(&format!("{name}/{answer}{file}"));
        let rows = |from: usize, answer: &str, sign: &str| -> String {
            (from..from + 20).map(|i| format!("{{\"input\": \"{sign}k{i};\", \"output\": \"{answer}\"}}\n")).collect()
        };
        let sign = if answer == "1" { "+" } else { "-" };
        for (split, from, answer) in [
            ("train", 10, train.unwrap_or(answer)),
            ("validation", 40, validation.unwrap_or(answer)),
            ("test", 70, answer),
        ] {
            fs::write(place(&format!(".{split}.jsonl")), rows(from, answer, sign)).unwrap();
        }
        let splits = ["train", "validation", "test"].map(|split| format!("{split} = \"{answer}.{split}.jsonl\"\n"));
        fs::write(place(".toml"), format!("name = \"of_{answer}\"\n{}", splits.concat())).unwrap();
        place(".toml")
    };
    let both = |name: &str, train, validation| ["1", "2"].map(|answer| write(name, answer, train, validation));
    let own = both("own", None, None);
    let work = Work::new(&[&own[0], &own[1]]);
    let fitted = |fit: &[String; 2]| work.fitted("evidence", &own[0], &[&fit[0], &fit[1]]);
    let (state, said) = fitted(&own);
    assert!(said.contains("chosen on validation rows: evidence:") && !said.contains("fallback=base"), "{said}");

    // Other answers to the training rows change nothing. Where no expert fits the answers to the validation rows, the
    // flattest mixture suits them best.
    assert!(fitted(&both("other_train", Some("qq"), None)).0 == state);
    let (other, said) = fitted(&both("other_validation", None, Some("qq")));
    assert!(said.contains("temperature=0.4") && other != state, "{said}");

    // Validation rows that an expert was trained on are none: nothing is chosen then, which is said.
    let seen = both("seen", None, None);
    for answer in ["1", "2"] {
        let file = |split: &str| path(&format!("seen/{answer}.{split}.jsonl"));
        fs::copy(file("train"), file("validation")).unwrap();
    }
    let said = fitted(&seen).1;
    assert!(said.contains("no task has validation rows") && said.contains("temperature=0.1"), "{said}");
    fs::copy(path("own/2.validation.jsonl"), path("seen/2.validation.jsonl")).unwrap();
    let said = fitted(&seen).1;
    assert!(said.contains("1 of 2 tasks to fit to, such as `of_1`") && !said.contains("no task has"), "{said}");
    for answer in ["1", "2"] {
        fs::copy(path(&format!("seen/{answer}.train.jsonl")), path(&format!("seen/{answer}.validation.jsonl")))
            .unwrap();
    }
    let refused = work.eval(&["scaled_uniform"], &["--tasks", &own[0], "--fit", &seen[0], &seen[1]]).failed(1);
    assert!(refused.contains("validation rows") && refused.contains("--fit"), "{refused}");

    // With nothing to choose, no answer is read: not even a file of validation rows is needed.
    let record = |router: &str| {
        let before = work.kept();
        work.eval(&[router], &["--tasks", &own[0]]).ok();
        let new: Vec<PathBuf> = work.kept().into_iter().filter(|folder| !before.contains(folder)).collect();
        serde_json::from_str::<Value>(&fs::read_to_string(new[0].join("router.json")).unwrap()).unwrap()
    };
    assert!(record("evidence:temperature=0.1,fallback=base")["of"]["rows"]["calibration_rows"].is_null());
    assert_eq!(record("evidence:rows=5")["of"]["rows"]["calibration_rows"], 4);
}

#[test]
fn explain_shows_choices_per_token() {
    let work = Work::new(&TASKS);
    let (library, page) = (work.library(), work.0.path().join("explained.html").display().to_string());
    let fixed = ["explain", "--base", "pico", "--library", &library, "--prompt", "+1:dk<m;"];
    let of = |router: &'static str| fixed.iter().copied().chain(["--router", router]);
    let text = run(of("arrow:top_k=2").chain(["--out", &page])).ok().stdout;
    assert!(text.contains("leading experts") && text.contains("all tokens"), "{text}");
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.starts_with("<!doctype html>") && html.contains("&lt;") && !html.contains("<script"));

    let routers =
        ["arrow:top_k=2", "spectr:top_k=2", "lag", "cm", "tp", "phatgoose:steps=4", "logo", "retrieve", "evidence"];
    for router in routers {
        let document = run(of(router).chain(["--json"])).json();
        let tokens = document["tokens"].as_array().unwrap().len();
        let choices = document["choices"].as_array().unwrap();
        assert!(!choices.is_empty());
        for choice in choices {
            let of_tokens = choice["tokens"].as_array().unwrap();
            assert_eq!(of_tokens.len(), tokens, "{router}");
            for shares in of_tokens {
                let sum: f64 = shares.as_array().unwrap().iter().map(|share| share["weight"].as_f64().unwrap()).sum();
                assert!(sum < 1.0 + 1e-5, "{router}: {shares}");
                // Of a prompt that no expert knows, `evidence` falls back on the base.
                assert!(sum > 1.0 - 1e-5 || router == "evidence", "{router}: {shares}");
            }
        }
    }
    let message = run(of("uniform")).failed(1);
    assert!(message.contains("nothing to explain"), "{message}");
    let long = "abc ".repeat(400);
    let cut = run(["explain", "--base", "pico", "--library", &library, "--router", "arrow", "--prompt", &long]).ok();
    assert!(cut.stderr.contains("the start is cut off"), "{}", cut.stderr);
}
