//! A command that is killed at any moment and run again gives the same result as an undisturbed one.
//!
//! By default a few kills per command; `LORAKIT_KILLS=50 cargo test --release --test crash_recovery` makes it 50 of
//! training and of each other command.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]
#![cfg(unix)]

mod binary;
mod interrupted_work;

use binary::{Ran, command, run};
use interrupted_work::{Files, KillTimes, ROWS, Work, files, killed, kills, products, start};
use lorakit_adapter::{Adapter, Library};
use lorakit_train::routing_store;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The number of completed steps in the checkpoints of all runs, by path.
fn checkpoints(library: &Path) -> BTreeMap<PathBuf, u64> {
    let found = files(&library.join("runs"))
        .into_iter()
        .filter(|(path, _)| path.extension().is_some_and(|e| e == "safetensors"));
    let step = |bytes: &[u8]| -> u64 {
        let (_, header) = safetensors::SafeTensors::read_metadata(bytes).expect("existing checkpoints are complete");
        let state: Value = serde_json::from_str(&header.metadata().as_ref().unwrap()["state"]).unwrap();
        state["step"].as_u64().unwrap()
    };
    found.map(|(path, bytes)| (path, step(&bytes))).collect()
}

/// Every expert's inode, which changes if the file is replaced.
fn inodes(library: &Path) -> BTreeMap<String, u64> {
    let Ok(library) = Library::open(library) else { return BTreeMap::new() };
    let names = library.expert_names().unwrap();
    let inode =
        |name: &String| fs::metadata(library.root().join("experts").join(name).join("expert.json")).unwrap().ino();
    names.iter().map(|name| (name.clone(), inode(name))).collect()
}

/// The files and folders of a library with names that only those have that are not written to their end.
fn partly_written(library: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![library.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if [".new", ".old", ".tmp"].iter().any(|prefix| name.starts_with(prefix)) {
                found.push(entry.path());
            } else if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found
}

#[test]
fn killed_training_resumes_to_the_same_bytes() {
    let work = Work::new();
    let (expected, length) = work.trained("undisturbed");
    assert_eq!(expected.len(), 3 * ROWS.len());
    let log = |library: &str| {
        let logs = files(&work.path(library).join("runs")).into_iter().filter(|(path, _)| path.ends_with("log.jsonl"));
        logs.map(|(_, bytes)| String::from_utf8(bytes).unwrap()).collect::<String>()
    };
    let (mut times, mut done, mut round) = (KillTimes(1), 0, 0);
    while done < kills() {
        let (name, mut seen, mut last) = (format!("disturbed-{round}"), BTreeMap::new(), BTreeMap::new());
        let library = work.path(&name);
        // If a run completes between two kills, it is checked, and a new one starts.
        while done < kills() && killed(&work.train(&name), times.before(length)) {
            done += 1;
            for (expert, inode) in inodes(&library) {
                assert_eq!(
                    *seen.entry(expert.clone()).or_insert(inode),
                    inode,
                    "{expert}: finished, and written again"
                );
                Adapter::read(&library.join("experts").join(&expert)).expect("an expert is complete or absent");
            }
            for (path, step) in checkpoints(&library) {
                let before = last.insert(path.clone(), step).unwrap_or(0);
                assert!(step >= before, "{}: went back from step {before} to {step}", path.display());
            }
        }
        run(work.train(&name)).ok();
        assert!(files(&library.join("experts")) == expected, "round {round}: bytes differ from the undisturbed run");
        assert!(inodes(&library).iter().all(|(expert, inode)| seen.get(expert).is_none_or(|before| before == inode)));
        assert_eq!(checkpoints(&library), BTreeMap::new(), "no checkpoint outlives its pass");
        assert_eq!(log(&name), log("undisturbed"), "every step is logged once");
        assert_eq!(partly_written(&library), Vec::<PathBuf>::new());
        round += 1;
    }
    eprintln!("{done} kills of training in {round} rounds");
}

/// Kills a command repeatedly, each time starting from scratch. After each kill `place` holds either nothing or
/// everything, and repeating the command gives `expected`.
fn disturb(words: &[String], place: &Path, undo: impl Fn(), (expected, length): (&Files, Duration), whole: impl Fn()) {
    let (mut times, mut length, mut done) = (KillTimes(2), length, 0);
    for _ in 0..4 * kills() {
        undo();
        let after = times.before(length);
        if killed(words, after) {
            done += 1;
        } else {
            // It ended before that: on a machine that has become faster, later kills would come too late as well.
            length = after;
        }
        whole();
        if files(place) != *expected {
            run(words).ok();
        }
        assert!(files(place) == *expected, "bytes differ from the undisturbed run: {words:?}");
        if done >= kills() {
            break;
        }
    }
    assert!(done > 0, "no kill came in time: {words:?}");
    eprintln!("{done} kills of {}", words[..2].join(" "));
}

#[test]
fn killed_commands_leave_no_partial_results() {
    let work = Work::new();
    work.trained("library");
    let text = |path: &Path| path.display().to_string();

    let out = work.path("out");
    fs::create_dir(&out).unwrap();
    let words: Vec<String> = [
        "cluster",
        "-k",
        "2",
        "--library",
        &text(&work.path("library")),
        "--out",
        &text(&out.join("clusters.json")),
        "--report",
        &text(&out.join("report.html")),
    ]
    .map(str::to_owned)
    .into();
    let since = Instant::now();
    run(&words).ok();
    let (expected, length) = (files(&out), since.elapsed());
    let undo = || files(&out).keys().for_each(|file| fs::remove_file(out.join(file)).unwrap());
    let whole = || files(&out).iter().for_each(|(name, bytes)| assert!(expected[name] == *bytes, "{}", name.display()));
    disturb(&words, &out, undo, (&expected, length), whole);

    let out = work.path("merged");
    let words: Vec<String> =
        ["merge", "--library", &text(&work.path("library")), "--method", "svd:rank=4", "--out", &text(&out)]
            .map(str::to_owned)
            .into();
    let since = Instant::now();
    run(&words).ok();
    let (expected, length) = (files(&out), since.elapsed());
    let undo = || drop(fs::remove_dir_all(&out));
    let whole = || assert!(files(&out).is_empty() || files(&out) == expected, "the merged folder is incomplete");
    disturb(&words, &out, undo, (&expected, length), whole);

    let library = work.path("added");
    let mut words: Vec<String> = ["library", "add", "--library", &text(&library)].map(str::to_owned).into();
    words.extend((0..12).map(|i| format!("e{i}={}", text(&work.path("library").join("experts").join(ROWS[i % 4].0)))));
    let since = Instant::now();
    run(&words).ok();
    let (expected, length) = (files(&library), since.elapsed());
    let undo = || fs::remove_dir_all(&library).unwrap();
    let whole = || {
        inodes(&library).keys().for_each(|name| drop(Adapter::read(&library.join("experts").join(name)).unwrap()));
    };
    disturb(&words, &library, undo, (&expected, length), whole);
}

/// Starts a training that replaces existing skills, and kills it as soon as the first one is replaced.
fn killed_among_skills(words: &[String], library: &Path) {
    let first = || fs::metadata(library.join("experts/poly_0/expert.json")).ok().map(|file| file.ino());
    let (before, mut child) = (first(), start(words));
    // The old one disappears for a moment before the new one is there.
    while first().is_none_or(|now| Some(now) == before) && child.try_wait().unwrap().is_none() {
        std::thread::sleep(Duration::from_micros(50));
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn killed_skill_training_leaves_no_mixed_routing() {
    let work = Work::new();
    let train = |library: &str, skills: &str| -> Vec<String> {
        work.train(library).into_iter().chain(["--restart", "--poly", skills].map(str::to_owned)).collect()
    };
    run(train("old", "3")).ok();
    let library = work.path("l");
    let undo = || {
        let _ = fs::remove_dir_all(&library);
        let copied = Command::new("cp").arg("-r").args([work.path("old"), library.clone()]).status();
        assert!(copied.unwrap().success());
    };
    let words = train("l", "2");
    undo();
    let since = Instant::now();
    run(&words).ok();
    let (old, new, length) = (products(&work.path("old")), products(&library), since.elapsed());
    assert!(old.len() > new.len(), "the new library has one skill less");
    let (mut times, mut refused) = (KillTimes(3), 0);
    for round in 0..2 * kills() {
        undo();
        if round % 2 == 0 {
            killed(&words, times.before(length));
        } else {
            killed_among_skills(&words, &library);
        }
        let opened = Library::open(&library).unwrap();
        // The next process that takes the lock recovers from the killed one.
        drop(opened.lock().unwrap());
        match routing_store::read(&opened, "poly") {
            Ok(Some(_)) => assert!(products(&library) == old || products(&library) == new, "a mixture of old and new"),
            Ok(None) => panic!("the routing was removed"),
            Err(error) => {
                refused += 1;
                assert!(format!("{error:#}").contains("--restart"), "{error:#}");
            }
        }
        run(&words).ok();
        assert!(products(&library) == new, "bytes differ from the undisturbed run");
    }
    eprintln!("{} kills of skills, {refused} of them among the skills", 2 * kills());
}

/// Waits until a library's run has logged `steps` steps.
fn wait_for_steps(library: &Path, steps: usize) {
    let since = Instant::now();
    let logs = || files(&library.join("runs")).into_iter().filter(|(path, _)| path.ends_with("log.jsonl"));
    let lines = || logs().map(|(_, bytes)| bytes.split(|b| *b == b'\n').count()).max();
    while lines().unwrap_or(0) <= steps + 20 {
        assert!(since.elapsed() < Duration::from_secs(120), "no steps");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn signals_stop_after_a_step_with_exit_code_130() {
    let work = Work::new();
    let (expected, _) = work.trained("undisturbed");
    for signal in ["INT", "TERM", "USR1"] {
        // The work may be finished before a signal arrives.
        let interrupted = (0..20).any(|attempt| {
            let name = format!("{signal}-{attempt}");
            let child = start(&work.train(&name));
            wait_for_steps(&work.path(&name), 2);
            let sent = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status();
            assert!(sent.unwrap().success());
            let ran = Ran::from(child.wait_with_output().unwrap());
            if ran.code != 0 {
                assert_eq!(ran.code, 130, "{}", ran.stderr);
                assert!(ran.stderr.contains("interrupted: ") && ran.stderr.contains("same command"), "{}", ran.stderr);
                let document: Value = serde_json::from_str(&ran.stdout).unwrap();
                assert_eq!(document["stopped"], true);
                assert!(!checkpoints(&work.path(&name)).is_empty());
            }
            let interrupted = ran.code != 0;
            run(work.train(&name)).ok();
            assert!(files(&work.path(&name).join("experts")) == expected, "SIG{signal}");
            interrupted
        });
        assert!(interrupted, "no SIG{signal} arrived in time");
    }
}

#[test]
fn a_signal_ends_a_process_whose_full_stderr_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(folder.path(), None).unwrap();
    let _held = library.lock().unwrap();
    let (_reader, mut writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    std::thread::spawn(move || while writer.write_all(b"full").is_ok() {});
    std::thread::sleep(Duration::from_millis(300));
    let words = ["library", "rm", "--library", library.root().to_str().unwrap(), "a"];
    let mut child = command(words).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
    // It warns that it waits for the lock, and so waits for somebody to read this.
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
    let since = Instant::now();
    while child.try_wait().unwrap().is_none() && since.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let ended = child.try_wait().unwrap();
    child.kill().unwrap();
    assert_eq!(ended.and_then(|status| status.code()), Some(130), "it still waits");
}

#[test]
fn a_full_disk_is_an_error_that_keeps_finished_experts() {
    let work = Work::new();
    let mut words = work.train("library");
    let first = words.iter().position(|word| *word == work.tasks[0]).unwrap();
    let rest: Vec<String> = words.drain(first + 1..first + ROWS.len()).collect();
    run(&words).ok();
    let before = files(&work.path("library").join("experts"));
    words.splice(first + 1..first + 1, rest);
    // The shell's file size limit, in blocks: smaller than an expert's weights.
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    let line = format!("ulimit -f 16; exec '{}' {}", env!("CARGO_BIN_EXE_lorakit"), quoted.join(" "));
    let ran = Ran::from(Command::new("sh").args(["-c", &line]).output().unwrap());
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("cannot be written") && ran.stderr.contains("File too large"), "{}", ran.stderr);
    assert!(
        files(&work.path("library").join("experts")) == before,
        "what is finished stays, and nothing else is there"
    );
    run(&words).ok();
    assert!(before.iter().all(|(name, bytes)| files(&work.path("library").join("experts"))[name] == *bytes));
}

#[test]
fn read_only_libraries_can_be_read() {
    let work = Work::new();
    work.trained("library");
    let library = work.path("library");
    let clusters =
        |out: &str| run(["cluster", "-k", "2", "--library", library.to_str().unwrap(), "--out", out]).failed(1);
    // Not even root can create a folder there.
    let message = run(work.train("x").iter().map(|word| if word.ends_with("/x") { "/proc/x" } else { word })).failed(1);
    assert!(message.contains("/proc/x"), "{message}");
    assert!(clusters("/proc/x.json").contains("/proc/x.json"));
    let mut readonly = fs::metadata(&library).unwrap().permissions();
    readonly.set_readonly(true);
    fs::set_permissions(library.join("experts"), readonly).unwrap();
    let ran = run(["library", "check", "--library", library.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    if fs::write(library.join("experts/probe"), "").is_err() {
        // Not root, so permissions are enforced.
        let message = run(["library", "rm", "--library", library.to_str().unwrap(), ROWS[0].0]).failed(1);
        assert!(message.contains("experts"), "{message}");
    }
    let mut writable = fs::metadata(library.join("experts")).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut writable, 0o755);
    fs::set_permissions(library.join("experts"), writable).unwrap();
}

#[test]
fn processes_wait_for_the_library_lock() {
    let work = Work::new();
    let (expected, _) = work.trained("undisturbed");
    let both = [start(&work.train("shared")), start(&work.train("shared"))].map(|child| {
        let ran = Ran::from(child.wait_with_output().unwrap());
        (ran.stderr.clone(), ran.json())
    });
    assert!(files(&work.path("shared").join("experts")) == expected);
    let trained = |document: &Value| {
        document["experts"].as_array().unwrap().iter().filter(|expert| expert["status"] == "trained").count()
    };
    assert_eq!(both.iter().map(|(_, document)| trained(document)).sum::<usize>(), ROWS.len(), "trained once each");

    let library = Library::open(&work.path("shared")).unwrap();
    let held = library.lock().unwrap();
    let words = ["library", "rm", "--library", library.root().to_str().unwrap(), ROWS[0].0].map(str::to_owned);
    let mut child = start(&words);
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it waits");
    assert!(library.contains(ROWS[0].0), "a refused command changes nothing");
    drop(held);
    let ran = Ran::from(child.wait_with_output().unwrap()).ok();
    assert!(ran.stderr.contains("another process is changing"), "{}", ran.stderr);
    assert!(!library.contains(ROWS[0].0));
}
