//! Parts of a training or an evaluation, run at once, killed and repeated, end as one command.
//!
//! `LORAKIT_KILLS=50 cargo test --release --test parts` makes it 50 kills.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]
#![cfg(unix)]

mod binary;
mod interrupted_work;

use binary::{Ran, assert_contains, command, run};
use interrupted_work::{Files, KillTimes, ROWS, Work, files, kills, products, start};
use lorakit_task::{Split, Task};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The command that trains all of a library, an expert per pass.
fn whole(work: &Work, library: &str) -> Vec<String> {
    let of_two = |word: String| if word == "experts_per_pass=2" { "experts_per_pass=1".to_owned() } else { word };
    work.train(library).into_iter().map(of_two).collect()
}

/// The command that trains a part.
fn part(work: &Work, library: &str, part: &str) -> Vec<String> {
    whole(work, library).into_iter().chain(["--part", part].map(str::to_owned)).collect()
}

fn ended(child: Child) -> Ran {
    Ran::from(child.wait_with_output().unwrap())
}

fn send(signal: &str, child: &Child) {
    let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// All lines of a library's logs, sorted.
fn log_lines(library: &Path) -> Vec<String> {
    let logs = files(&library.join("runs")).into_iter().filter(|(path, _)| path.ends_with("log.jsonl"));
    let mut lines: Vec<String> = logs
        .flat_map(|(_, bytes)| String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    lines.sort();
    lines
}

/// The run.json of a library's only run.
fn manifest(library: &Path) -> Value {
    let found = files(&library.join("runs"));
    let mut manifests = found.iter().filter(|(path, _)| path.ends_with("run.json"));
    let (_, bytes) = manifests.next().expect("a run.json");
    assert!(manifests.next().is_none(), "one run");
    serde_json::from_slice(bytes).unwrap()
}

/// What killed processes left: checkpoints, and temporary files and folders.
fn leftovers(library: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let mut folders = vec![library.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".new") || name.starts_with(".old") || name.starts_with("pass-") {
                found.push(entry.path());
            } else if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found
}

/// A library that one command trained, and what it holds.
fn by_one_command(work: &Work) -> (PathBuf, Files, Duration) {
    let since = Instant::now();
    run(whole(work, "one/library")).ok();
    let library = work.path("one/library");
    let products = products(&library);
    (library, products, since.elapsed())
}

#[test]
fn parts_at_once_end_as_one_command() {
    let work = Work::new();
    let (one, expected, _) = by_one_command(&work);
    let ran = ["0/3", "1/3", "2/3"].map(|index| start(&part(&work, "parts/library", index))).map(ended);
    let documents = ran.map(Ran::json);
    let parts = work.path("parts/library");
    assert!(products(&parts) == expected, "bytes differ from those of one command");
    assert_eq!(leftovers(&parts), Vec::<PathBuf>::new());
    assert_eq!(log_lines(&parts), log_lines(&one), "every step is logged once");
    let names = |document: &Value| -> Vec<String> {
        let rows = document["experts"].as_array().unwrap().iter();
        rows.filter(|row| row["status"] == "trained").map(|row| row["expert"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(documents.each_ref().map(names), [vec!["double", "vowel"], vec!["reverse"], vec!["upper"]]);

    let (mut given, whole_run) = (manifest(&parts), manifest(&one));
    let fields = given.as_object_mut().unwrap();
    assert_eq!(fields.remove("parts"), Some(3.into()));
    fields.remove("vector_instructions").expect("the machine is recorded");
    assert_eq!(given, whole_run, "the passes are those of one command");

    let again = run(part(&work, "parts/library", "1/3")).json();
    assert_eq!(again["experts"][0]["status"], "finished before");
    assert!(run(whole(&work, "parts/library")).json()["experts"].as_array().unwrap().len() == ROWS.len());
}

#[test]
fn the_first_part_fixes_their_number() {
    let work = Work::new();
    run(part(&work, "l", "0/2")).ok();
    let library = work.path("l");
    let message = run(part(&work, "l", "2/3")).failed(1);
    assert_contains(&message, &["run.json", "into 2 parts", "--part 2/3", "--part I/2"]);
    let run_folder = fs::read_dir(library.join("runs")).unwrap().next().unwrap().unwrap().path();
    assert!(run_folder.join("part-0").exists() && !run_folder.join("part-2").exists());
    let auto = |index: Option<&str>, words: &[String]| -> Ran {
        let mut command = command(words);
        if let Some(index) = index {
            command.env("SLURM_ARRAY_TASK_ID", index);
        }
        command.output().unwrap().into()
    };
    let words = part(&work, "l", "auto/2");
    assert_contains(&auto(None, &words).failed(2), &["auto/2", "HQ_TASK_ID"]);
    assert_contains(&auto(Some("2"), &words).failed(2), &["SLURM_ARRAY_TASK_ID", "--array=0-1"]);
    let other: Ran = {
        let mut command = command(&words);
        command.env("SLURM_ARRAY_TASK_ID", "1").env("LORAKIT_SIMD", "scalar").output().unwrap().into()
    };
    // A machine without wider vectors is of the same kind.
    let recorded = manifest(&library)["vector_instructions"].as_str().unwrap().to_owned();
    assert_eq!(other.ok().stderr.contains("will differ in their last bits"), recorded != "scalar", "{recorded}");
    assert_eq!(files(&library.join("experts")).len(), 3 * ROWS.len());
    // More parts than passes: some have nothing to do.
    let idle = run(part(&work, "many", "4/5")).ok();
    assert_contains(&idle.stderr, &["part 4/5 has nothing to train", "4 passes; a lower experts_per_pass makes more"]);
}

#[test]
fn a_plan_trains_and_writes_nothing() {
    let work = Work::new();
    let plan = |words: Vec<String>| -> Vec<Value> {
        let lines = words.into_iter().filter(|word| word != "--json").chain(["--plan".to_owned()]);
        run(lines).ok().stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let before = plan(whole(&work, "l"));
    assert!(!work.path("l").exists());
    assert_eq!(before.len(), ROWS.len());
    for (pass, (line, (name, rows))) in before.iter().zip(ROWS).enumerate() {
        assert_eq!(
            (&line["pass"], &line["experts"], &line["finished"]),
            (&pass.into(), &vec![name].into(), &false.into())
        );
        assert!(line["rows"].as_u64().unwrap() < rows as u64 && line["part"].is_null());
        assert!(["steps", "tokens", "memory"].iter().all(|key| line[key].as_u64().unwrap() > 0), "{line}");
    }
    run(part(&work, "l", "1/2")).ok();
    let trained: u64 = log_lines(&work.path("l"))
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["tokens"].as_u64().unwrap())
        .sum();
    let of_part: u64 = [1, 3].iter().map(|&pass: &usize| before[pass]["tokens"].as_u64().unwrap()).sum();
    assert_eq!(trained, of_part, "the tokens of whole epochs are exact");
    let after = plan(whole(&work, "l"));
    let of = |line: &Value| (line["part"].as_u64().unwrap(), line["finished"].as_bool().unwrap());
    assert_eq!(after.iter().map(of).collect::<Vec<_>>(), [(0, false), (1, true), (0, false), (1, true)]);
    assert_eq!(plan(part(&work, "l", "0/2")), [after[0].clone(), after[2].clone()]);
    let document = run(whole(&work, "l").into_iter().chain(["--plan".to_owned()])).json();
    assert_eq!(document["passes"].as_array().unwrap(), &after);
}

#[test]
fn killed_parts_lose_nothing() {
    let work = Work::new();
    let (one, expected, length) = by_one_command(&work);
    let (mut times, mut done, mut round) = (KillTimes(4), 0, 0);
    while done < kills() {
        let name = format!("killed-{round}/library");
        let library = work.path(&name);
        // Two of the same number among them, as where a scheduler believes a node dead that is not.
        for signal in ["KILL", "TERM", "USR1"] {
            let mut running = ["0/2", "1/2", "1/2"].map(|index| start(&part(&work, &name, index)));
            std::thread::sleep(times.before(length));
            for child in &mut running {
                if child.try_wait().unwrap().is_none() {
                    send(signal, child);
                    done += 1;
                }
            }
            for mut child in running {
                let code = child.wait().unwrap().code();
                // None: killed, or too early for it to have a handler.
                assert!([None, Some(0), Some(130)].contains(&code), "SIG{signal}: {code:?}");
            }
        }
        let parts = ["1/2", "0/2"].map(|index| start(&part(&work, &name, index)));
        for part in parts {
            ended(part).ok();
        }
        assert!(products(&library) == expected, "round {round}: bytes differ from those of one command");
        assert_eq!(log_lines(&library), log_lines(&one), "round {round}: every step is logged once");
        // Where a process was killed on its last step, another takes the lock before all is clean.
        drop(lorakit_adapter::Library::open(&library).unwrap().lock().unwrap());
        assert_eq!(leftovers(&library), Vec::<PathBuf>::new(), "round {round}");
        round += 1;
    }
    eprintln!("{done} kills of parts in {round} rounds");
}

/// Waits until the library's runs have logged a step.
fn wait_for_a_step(library: &Path) {
    let since = Instant::now();
    while !library.join("runs").exists() || log_lines(library).is_empty() {
        assert!(since.elapsed() < Duration::from_secs(120), "no steps");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn one_command_finishes_what_parts_began_and_the_reverse() {
    let work = Work::new();
    let (_, expected, _) = by_one_command(&work);
    for (name, first, second) in [
        ("a/library", part(&work, "a/library", "0/2"), vec![whole(&work, "a/library")]),
        ("b/library", whole(&work, "b/library"), ["0/2", "1/2"].map(|index| part(&work, "b/library", index)).into()),
    ] {
        let child = start(&first);
        wait_for_a_step(&work.path(name));
        send("TERM", &child);
        assert!([0, 130].contains(&ended(child).code));
        second.into_iter().for_each(|words| drop(run(words).ok()));
        assert!(products(&work.path(name)) == expected, "{name}: bytes differ from those of one command");
        assert_eq!(leftovers(&work.path(name)), Vec::<PathBuf>::new());
    }
}

#[test]
fn both_stages_of_mbc_end_as_one_command() {
    let work = Work::new();
    let both = |library: &str, part: Option<&str>| -> Vec<String> {
        let part = part.into_iter().flat_map(|part| ["--part", part]);
        whole(&work, library).into_iter().chain(["--mbc", "2"].into_iter().chain(part).map(str::to_owned)).collect()
    };
    run(both("one/library", None)).ok();
    let (first, second) = (both("parts/library", Some("0/2")), both("parts/library", Some("1/2")));
    // Alone, the first part cannot know the clusters, and says so.
    let alone = run(first.iter().filter(|word| *word != "--json")).ok();
    assert_contains(&alone.stdout, &["2 experts of other parts are still missing", "run the same parts again"]);
    let library = work.path("parts/library");
    assert!(!library.join("clusters.json").exists());
    // The one that completes the first stage goes on to the second.
    let document = run(&second).json();
    assert_eq!(document["private"]["missing_in_other_parts"], serde_json::json!([]));
    assert_eq!(files(&library.join("experts")).len(), 3, "an expert of the second stage");
    for part in [&first, &second].map(|words| start(words)) {
        ended(part).ok();
    }
    let made = |library: &str| -> Files {
        let of_run = |path: &Path| path.components().any(|part| part.as_os_str() == "runs");
        files(&work.path(library)).into_iter().filter(|(path, _)| !of_run(path)).collect()
    };
    assert!(made("parts/library") == made("one/library"), "bytes differ from those of one command");
}

#[test]
fn a_restarted_part_waits_for_the_others() {
    let work = Work::new();
    let both = |more: &[&str]| -> Vec<String> {
        let more = ["--mbc", "2"].into_iter().chain(more.iter().copied()).map(str::to_owned);
        whole(&work, "library").into_iter().chain(more).collect()
    };
    run(both(&[])).ok();
    let file = work.path("library/clusters.json");
    fs::write(&file, fs::read_to_string(&file).unwrap() + "\n").unwrap();
    let before = fs::read(&file).unwrap();
    let restarted = |part: &str| both(&["--set", "learning_rate=2e-2", "--restart", "--part", part]);
    let first = run(restarted("0/2")).json();
    assert_eq!(first["missing_in_other_parts"].as_array().map(Vec::len), Some(2), "{first}");
    assert_eq!(fs::read(&file).unwrap(), before, "old experts are not clustered with new ones");
    run(restarted("1/2")).ok();
    assert_ne!(fs::read(&file).unwrap(), before);
    let done = run(restarted("0/2")).json();
    assert_eq!(done["private"]["missing_in_other_parts"], serde_json::json!([]), "{done}");
}

#[test]
fn no_part_clusters_without_an_expert_of_every_task() {
    let work = Work::new();
    let bad = work.path("bad.json").display().to_string();
    // A task whose only row is not in the training split.
    let has_none = |row: &usize| {
        fs::write(&bad, format!("[{{\"input\": \"+1:a{row};\", \"output\": \"b\"}}]")).unwrap();
        Task::load(&bad, None).unwrap().remove(0).count(Split::Train) == 0
    };
    assert!((0..1000).any(|row| has_none(&row)));
    let part = |index: &str| -> Ran {
        let mut words: Vec<String> = whole(&work, "library").into_iter().filter(|word| word != "--json").collect();
        let tasks = words.iter().position(|word| word == "--tasks").unwrap();
        words.insert(tasks + 1, bad.clone());
        run(words.into_iter().chain(["--mbc", "2", "--part", index].map(str::to_owned)))
    };
    let first = part("0/2");
    assert_eq!(first.code, 1, "{}", first.stderr);
    assert_contains(&first.stderr, &["error: 1 expert failed", "`bad`"]);
    // The other part reports no failure, which part 0 does, and does not cluster either.
    let other = part("1/2").ok();
    assert_contains(&other.stdout, &["an expert of every task", "part 0"]);
    assert!(!work.path("library/clusters.json").exists());
}

/// Every file's inode, which changes if it is written again.
fn inodes(folder: &Path) -> BTreeMap<PathBuf, u64> {
    files(folder).into_keys().map(|path| (path.clone(), fs::metadata(folder.join(path)).unwrap().ino())).collect()
}

#[test]
fn an_owner_that_wakes_after_a_takeover_commits_nothing() {
    let work = Work::new();
    let (one, expected, _) = by_one_command(&work);
    // On a busy machine an owner may have ended before it is suspended.
    let taken_over = (0..5).any(|round| {
        let library = work.path(&format!("{round}/library"));
        let (taken_over, late) = taken_over(&work, &library);
        assert_eq!(log_lines(&library), log_lines(&one), "every step is logged once");
        assert!(products(&library) == expected, "bytes differ from those of one command");
        if taken_over {
            assert_eq!(late.code, 1, "{}", late.stderr);
            assert_contains(&late.stderr, &["taken over by process", "run the same command again"]);
        }
        taken_over
    });
    assert!(taken_over, "no owner was suspended while it had work left");
}

/// Suspends the owner of a part, lets another process end the part, and wakes the owner. Returns whether there was work left
/// to take over, and how the owner ended.
fn taken_over(work: &Work, library: &Path) -> (bool, Ran) {
    let words = part(work, library.strip_prefix(work.folder.path()).unwrap().to_str().unwrap(), "0/1");
    fs::create_dir_all(library).unwrap();
    // Leases of two seconds in place of the operating system's locks.
    fs::write(library.join(".lease"), "2\n").unwrap();
    let suspended = start(&words);
    wait_for_a_step(library);
    send("STOP", &suspended);
    let ran = run(&words).ok();
    let before = inodes(library);
    send("CONT", &suspended);
    let late = ended(suspended);
    assert_eq!(inodes(library), before, "the one that woke wrote nothing");
    let document: Value = serde_json::from_str(&ran.stdout).unwrap();
    let taken_over = document["experts"].as_array().unwrap().iter().any(|expert| expert["status"] == "trained");
    if taken_over {
        assert_contains(&ran.stderr, &["another process trains part 0/1"]);
    }
    (taken_over, late)
}

#[test]
fn parts_of_an_evaluation_end_as_one_command() {
    let work = Work::new();
    run(work.train("library")).ok();
    let eval = |out: &str, part: Option<&str>| -> Vec<String> {
        let (library, out) = (work.path("library").display().to_string(), work.path(out).display().to_string());
        let mut words: Vec<String> =
            ["eval", "--json", "--base", "pico", "--split", "all", "--limit", "6", "--log-samples"]
                .map(str::to_owned)
                .into();
        words.extend(["--library".to_owned(), library, "--out".to_owned(), out, "--router".to_owned()]);
        words.extend(["base", "uniform", "arrow:top_k=2", "oracle", "cm"].map(str::to_owned));
        words.push("--tasks".to_owned());
        words.extend(work.tasks.iter().cloned());
        words.extend(part.into_iter().flat_map(|part| ["--part".to_owned(), part.to_owned()]));
        words
    };
    run(eval("one", None)).ok();
    let ran = ["0/3", "1/3", "2/3"].map(|part| start(&eval("parts", Some(part)))).map(ended).map(Ran::json);
    assert!(files(&work.path("one")) == files(&work.path("parts")), "bytes differ from those of one command");
    let pairs = |document: &Value| -> usize {
        document["results"].as_object().unwrap().values().map(|tasks| tasks.as_object().unwrap().len()).sum()
    };
    assert_eq!(ran.each_ref().map(pairs), [6, 7, 7], "each evaluates its share");
    let samples = |folder: &str| {
        let of_pair = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("samples_");
        files(&work.path(folder)).keys().filter(of_pair).count()
    };
    for (part, pairs) in ["0/3", "1/3", "2/3"].into_iter().zip([6, 7, 7]) {
        let before = samples("in turn");
        run(eval("in turn", Some(part))).ok();
        assert_eq!(samples("in turn"), before + pairs, "part {part} writes a file for each of its pairs");
    }
    assert!(files(&work.path("one")) == files(&work.path("in turn")), "bytes differ from those of one command");
    let report = ["--report".to_owned(), work.path("report.html").display().to_string()];
    let refused = run(eval("parts", Some("1/7")).into_iter().chain(report)).failed(2);
    assert_contains(&refused, &["--part", "--report"]);
    run(eval("parts", Some("1/7"))).ok();
    assert!(files(&work.path("one")) == files(&work.path("parts")), "a part may be repeated, in other parts too");
}
