//! Libraries: experts are added and removed atomically, and nothing outside the folder is touched.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lorakit_adapter::{
    Adapter, AdapterMetadata, BaseIdentity, ExpertRecord, HubExport, Library, LowRank, OpaqueRecord, TaskRecord,
    WEIGHTS_FILE,
};
use lorakit_format::hash::sha256_of_file;
use serde_json::json;

use crate::{chain, small_adapter};

fn base(fingerprint: &str) -> BaseIdentity {
    BaseIdentity {
        name: "some/base".into(),
        on_hub: None,
        architecture: "MistralForCausalLM".into(),
        dimensions: BTreeMap::from([("hidden_size".into(), 64)]),
        fingerprint: fingerprint.into(),
        form: None,
    }
}

/// An adapter that names the base `base`.
fn made_for(base: &str) -> Adapter {
    let metadata = AdapterMetadata { base_model: Some(base.to_owned()), ..AdapterMetadata::default() };
    small_adapter(1).with_metadata(metadata)
}

fn record() -> ExpertRecord {
    ExpertRecord {
        tasks: vec![TaskRecord {
            name: "t".into(),
            path: "t.json".into(),
            sha256: "00".into(),
            split_seed: 3,
            ..TaskRecord::default()
        }],
        settings: OpaqueRecord::new(&BTreeMap::from([("rank", 2)])).unwrap(),
        seed: u64::MAX,
        initial_seed: Some(7),
        tokens: 99,
        version: "0.1.0".into(),
        ..ExpertRecord::default()
    }
}

#[test]
fn experts_are_added_listed_read_and_removed() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("lib");
    let library = Library::open_or_create(&root, None).unwrap();
    assert_eq!((library.name(), library.expert_names().unwrap()), ("lib", vec![]));
    let _lock = library.lock().unwrap();
    library.add("zeta", &small_adapter(1), Some(&record())).unwrap();
    library.add("alpha", &small_adapter(2), None).unwrap();
    let library = Library::open(&root).unwrap();
    assert_eq!(library.expert_names().unwrap(), ["alpha", "zeta"]);
    assert_eq!(library.adapter("alpha").unwrap().modules(), small_adapter(2).modules());
    assert_eq!(library.record("alpha").unwrap(), None);
    let weights = root.join("experts/zeta").join(WEIGHTS_FILE);
    let expected = ExpertRecord { sha256: sha256_of_file(&weights).unwrap(), ..record() };
    assert_eq!(library.record("zeta").unwrap(), Some(expected));
    library.remove("zeta").unwrap();
    assert_eq!(library.expert_names().unwrap(), ["alpha"]);
    let error = library.adapter("zeta").unwrap_err().to_string();
    assert!(error.contains("no expert `zeta`") && error.contains("`alpha`"), "{error}");
}

#[test]
fn exports_have_no_path_of_any_task_and_no_hash_of_one() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(&temporary.path().join("lib"), None).unwrap();
    let task = |path: &str| TaskRecord { path: path.into(), ..record().tasks.remove(0) };
    let merge = |task: TaskRecord| {
        let settings =
            json!({ "merge": { "method": "linear", "experts": [], "fit": { "tasks": [task] } }, "path": "kept" });
        OpaqueRecord::new(&settings).unwrap()
    };
    let settings = merge(task("/home/me/secret/t.json"));
    let fitted = ExpertRecord {
        tasks: vec![task("/home/me/secret/t.json")],
        seen: vec![task(r"C:\secret\t.json")],
        settings_sha256: settings.sha256(),
        settings,
        ..record()
    };
    let plain = ExpertRecord { settings_sha256: "as it was".into(), ..record() };
    for (name, record) in [("fitted", fitted), ("plain", plain)] {
        library.add(name, &small_adapter(1), Some(&record)).unwrap();
        HubExport::new(&library, name).unwrap().write(&temporary.path().join(name), None).unwrap();
    }
    let exported = |name: &str| fs::read_to_string(temporary.path().join(name).join("expert.json")).unwrap();
    assert!(!exported("fitted").contains("secret"), "{}", exported("fitted"));
    let found: ExpertRecord = serde_json::from_str(&exported("fitted")).unwrap();
    assert_eq!((&found.tasks[0].path, &found.seen[0].path), (&"t.json".to_owned(), &"t.json".to_owned()));
    let shortened = merge(task("t.json"));
    assert_eq!((found.settings_sha256, &found.settings), (shortened.sha256(), &shortened));
    assert!(exported("plain").contains("\"as it was\""), "settings without paths keep their hash");
}

/// Names are compared by their last part, fingerprints before names, and what is not known is no difference.
#[test]
fn experts_of_different_bases_are_told_apart() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    let made_by = |fingerprint: &str| ExpertRecord { base_fingerprint: Some(fingerprint.into()), ..record() };
    for (name, base, record) in [
        ("a", Some("org/Llama-1b"), None),
        ("b", Some("/models/llama-1b/"), None),
        ("c", Some("org/other-1b"), None),
        ("d", None, None),
        ("e", Some("here"), Some(made_by("1"))),
        ("f", Some("there"), Some(made_by("1"))),
        ("g", Some("here"), Some(made_by("2"))),
        ("h", Some("files/llama-1b.gguf"), None),
    ] {
        let adapter = base.map_or(small_adapter(1), made_for);
        library.add(name, &adapter, record.as_ref()).unwrap();
    }
    let differing = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        library.differing_bases(&names).unwrap()
    };
    assert_eq!((differing(&["a", "b", "d", "h"]), differing(&["e", "f"])), (None, None));
    let text = differing(&["a", "b", "c"]).unwrap();
    assert!(["`a`", "org/Llama-1b", "`c`", "org/other-1b"].iter().all(|part| text.contains(part)), "{text}");
    assert!(differing(&["e", "g"]).unwrap().contains("fingerprint 2"));
}

/// PEFT's tools look the base up by that name.
#[test]
fn experts_name_the_base_of_their_library_unless_they_name_one() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), Some(&base("1"))).unwrap();
    library.add("a", &small_adapter(1), None).unwrap();
    library.add("b", &made_for("org/own"), None).unwrap();
    let named = |name: &str| library.adapter(name).unwrap().metadata().base_model.clone().unwrap();
    assert_eq!((named("a"), named("b")), ("some/base".to_owned(), "org/own".to_owned()));
}

#[test]
fn an_existing_name_is_refused_unless_replaced_explicitly() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    library.add("a", &small_adapter(1), None).unwrap();
    assert!(library.add("a", &small_adapter(2), None).unwrap_err().to_string().contains("already exists"));
    assert_eq!(library.adapter("a").unwrap().modules(), small_adapter(1).modules());
    library.replace("a", &small_adapter(2), Some(&record())).unwrap();
    library.replace("b", &small_adapter(3), None).unwrap();
    assert_eq!(library.adapter("a").unwrap().modules(), small_adapter(2).modules());
    assert_eq!(fs::read_dir(temporary.path().join("experts")).unwrap().count(), 2);
}

#[test]
fn names_that_lead_out_of_the_library_are_refused_by_every_call() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(&temporary.path().join("lib"), None).unwrap();
    for name in ["../lib", "..", "/tmp", "a/b", ".hidden", ""] {
        assert!(library.add(name, &small_adapter(1), None).is_err(), "{name}");
        assert!(library.replace(name, &small_adapter(1), None).is_err(), "{name}");
        assert!(library.adapter(name).is_err() && library.record(name).is_err() && library.remove(name).is_err());
    }
    assert!(temporary.path().join("lib/library.json").exists());
}

#[test]
fn listing_reads_no_weights() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    for at in 0..3 {
        library.add(&format!("e{at}"), &small_adapter(at), Some(&record())).unwrap();
        fs::remove_file(temporary.path().join(format!("experts/e{at}")).join(WEIGHTS_FILE)).unwrap();
    }
    assert_eq!(library.expert_names().unwrap().len(), 3);
    assert_eq!(library.record("e1").unwrap().unwrap().tokens, 99);
    assert!(library.adapter("e1").is_err());
}

#[test]
fn a_library_has_one_base() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("lib");
    Library::open_or_create(&root, None).unwrap();
    let library = Library::open_or_create(&root, Some(&base("aa"))).unwrap();
    let late = Library::open_or_create(&root, Some(&base("bb"))).unwrap();
    assert_eq!((library.base(), library.recorded_base().unwrap()), (Some(&base("aa")), None), "it is empty");
    assert!(library.add_all(&[("a", &small_adapter(1), None), ("../b", &small_adapter(2), None)]).is_err());
    assert_eq!(library.recorded_base().unwrap(), None, "a failed addition records nothing");
    library.add("a", &small_adapter(1), None).unwrap();
    assert_eq!(Library::open(&root).unwrap().base(), Some(&base("aa")));
    assert!(late.record_base().is_err(), "the second process is refused");
    let renamed = BaseIdentity { name: "/elsewhere".into(), ..base("aa") };
    assert!(Library::open_or_create(&root, Some(&renamed)).is_ok());
    let error = chain(Library::open_or_create(&root, Some(&base("bb"))).unwrap_err());
    assert!(error.contains("fingerprint") && error.contains("aa") && error.contains("bb"), "{error}");
    let wider = BaseIdentity { dimensions: BTreeMap::from([("hidden_size".into(), 128)]), ..base("aa") };
    let error = chain(Library::open_or_create(&root, Some(&wider)).unwrap_err());
    assert!(error.contains("hidden_size") && error.contains("128"), "{error}");
}

#[test]
fn other_folders_are_neither_opened_nor_overwritten() {
    let temporary = tempfile::tempdir().unwrap();
    assert!(Library::open(temporary.path()).unwrap_err().to_string().contains("library.json"));
    fs::write(temporary.path().join("thesis.tex"), "x").unwrap();
    let error = Library::open_or_create(temporary.path(), None).unwrap_err().to_string();
    assert!(error.contains("thesis.tex"), "{error}");
    let newer = temporary.path().join("newer");
    fs::create_dir(&newer).unwrap();
    fs::write(newer.join("library.json"), r#"{"format": 2, "name": "n", "base": null}"#).unwrap();
    assert!(Library::open(&newer).unwrap_err().to_string().contains("format 2"));
}

#[test]
fn only_one_may_change_a_library_at_a_time() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    let held = library.lock().unwrap();
    assert!(library.try_lock().unwrap().is_none());
    drop(held);
    assert!(library.try_lock().unwrap().is_some());
}

#[test]
fn parts_of_a_run_exclude_other_changes_but_not_each_other() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    let part = |index| library.lock_part("run", index, &mut || false).unwrap();
    let (planning, first) = part(0).unwrap();
    assert!(part(1).is_none(), "one plans at a time");
    drop(planning);
    let (planning, second) = part(1).unwrap();
    drop(planning);
    assert!(part(0).is_none(), "a part has one process");
    assert!(library.try_lock().unwrap().is_none(), "another change waits for the parts");
    drop(library.lock_for_change().unwrap());
    drop((first, second));
    assert!(library.try_lock().unwrap().is_some());
}

#[test]
fn a_change_after_a_crash_recovers_first() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    let left = temporary.path().join("experts/.new-x1y2z3");
    fs::create_dir(&left).unwrap();
    drop(library.lock_for_change().unwrap());
    assert!(left.exists(), "nobody crashed, so nothing is looked for");
    fs::write(temporary.path().join(".lock"), "x").unwrap();
    drop(library.lock_for_change().unwrap());
    assert!(!left.exists());

    // By one that gives the lock up again, since a part is trained, too.
    let (planning, part) = library.lock_part("run", 0, &mut || false).unwrap().unwrap();
    drop(planning);
    fs::create_dir(&left).unwrap();
    fs::write(temporary.path().join(".lock"), "x").unwrap();
    assert!(library.try_lock().unwrap().is_none() && !left.exists());
    drop(part);
}

#[test]
fn a_library_whose_lock_was_taken_over_changes_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    fs::write(temporary.path().join(".lease"), "60\n").unwrap();
    let guarded = library.guarded_by(&[&library.lock().unwrap()]);
    guarded.add("a", &small_adapter(1), None).unwrap();
    // As by a process that takes over.
    fs::write(temporary.path().join(".lease-99"), "process 1 on another machine\n").unwrap();
    for refused in [
        guarded.add("b", &small_adapter(2), None),
        guarded.replace("a", &small_adapter(2), None),
        guarded.remove("a"),
        guarded.put_router("r", &[], &"rows", b"state"),
    ] {
        let message = chain(refused.unwrap_err());
        assert!(message.contains("taken over by process 1 on another machine"), "{message}");
    }
    assert_eq!(library.expert_names().unwrap(), ["a"]);
    assert_eq!(library.adapter("a").unwrap().modules(), small_adapter(1).modules());
    assert!(library.router_names().unwrap().is_empty());
}

#[test]
fn the_lease_file_of_a_library_holds_for_a_library_in_it() {
    let temporary = tempfile::tempdir().unwrap();
    let open = |folder: &Path| Library::open_or_create(folder, None).unwrap();
    let outer = open(temporary.path());
    let inner = open(&outer.root().join("private"));
    assert_eq!(inner.takeover_time().unwrap(), None);
    fs::write(outer.root().join(".lease"), "60\n").unwrap();
    assert!(inner.takeover_time().unwrap().is_some());
    let held = inner.lock().unwrap();
    assert!(inner.root().join(".lease-1").is_file() && inner.try_lock().unwrap().is_none());
    drop(held);
    fs::write(inner.root().join(".lease"), "5\n").unwrap();
    assert!(inner.takeover_time().unwrap().unwrap() < std::time::Duration::from_secs(10), "its own comes first");
}

#[test]
fn an_expert_that_is_replaced_meanwhile_is_read_whole() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    let scaled = |scale: f64| {
        let update = |(path, update): (&String, &LowRank)| {
            (path.clone(), LowRank::new(update.a().clone(), update.b().clone(), scale).unwrap())
        };
        small_adapter(scale as u64).modules().iter().map(update).collect()
    };
    // The scale is in one file, the values are in another.
    let both = [Adapter::new(scaled(1.0)), Adapter::new(scaled(2.0))];
    library.add("e", &both[0], None).unwrap();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=200 {
                library.replace("e", &both[round % 2], None).unwrap();
            }
            is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
            let read = library.adapter("e").unwrap();
            assert!(both.iter().any(|adapter| adapter.modules() == read.modules()), "a mixture");
        }
    });
}

#[test]
fn the_next_writer_recovers_from_a_killed_one() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    library.add("a", &small_adapter(1), None).unwrap();
    library.add("b", &small_adapter(2), None).unwrap();
    let experts = temporary.path().join("experts");
    // Killed between the two renames of a replacement, after them, and while writing.
    fs::rename(experts.join("a"), experts.join(".old-a")).unwrap();
    small_adapter(3).write(&experts.join(".old-b")).unwrap();
    fs::create_dir(experts.join(".new-x1y2z3")).unwrap();
    assert_eq!(library.expert_names().unwrap(), ["b"]);
    drop(library.lock().unwrap());
    assert_eq!(library.expert_names().unwrap(), ["a", "b"]);
    assert_eq!(library.adapter("b").unwrap().modules(), small_adapter(2).modules());
    assert_eq!(fs::read_dir(&experts).unwrap().count(), 2);
}

#[test]
fn the_next_writer_recovers_a_killed_replacement() {
    let temporary = tempfile::tempdir().unwrap();
    let place = temporary.path().join("merged");
    let aside = temporary.path().join(".old-merged");
    small_adapter(1).write(&aside).unwrap();
    small_adapter(2).write(&place).unwrap();
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1, "the old one was restored, then replaced");
    small_adapter(1).write(&aside).unwrap();
    small_adapter(3).write(&place).unwrap();
    assert_eq!(Adapter::read(&place).unwrap().modules(), small_adapter(3).modules());
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 1);
}

#[test]
fn experts_are_added_together_or_not_at_all() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    let (one, two, empty) = (small_adapter(1), small_adapter(2), Adapter::new(BTreeMap::new()));
    library.add("old", &one, None).unwrap();
    assert!(library.add_all(&[("a", &one, None), ("b", &empty, None)]).is_err());
    assert!(library.add_all(&[("a", &one, None), ("old", &two, None)]).is_err());
    assert_eq!(library.expert_names().unwrap(), ["old"], "the old expert is kept, and no other is added");
    assert_eq!(library.adapter("old").unwrap().modules(), one.modules());
    // Killed between the two: the list of names still exists.
    library.add("a", &one, None).unwrap();
    fs::write(temporary.path().join(".adding.json"), r#"["a", "b", "../old", "experts/old"]"#).unwrap();
    drop(library.lock().unwrap());
    assert_eq!(library.expert_names().unwrap(), ["old"]);
    library.add_all(&[("a", &one, None), ("b", &two, None)]).unwrap();
    drop(library.lock().unwrap());
    assert_eq!(library.expert_names().unwrap(), ["a", "b", "old"]);
}

/// The file that names the experts is synced before they are; the lock's mark is not, and is lost.
#[test]
fn what_a_loss_of_power_left_of_an_addition_is_removed() {
    type Change = fn(&Library);
    let changes: [Change; 4] = [
        |library| drop(library.lock_for_change().unwrap()),
        |library| drop(library.lock_part("run", 0, &mut || false).unwrap().unwrap()),
        |library| library.add("c", &small_adapter(2), None).unwrap(),
        |library| library.add_all(&[("b", &small_adapter(2), None), ("c", &small_adapter(3), None)]).unwrap(),
    ];
    for (change, left) in changes.into_iter().zip([&["a"][..], &["a"], &["a", "c"], &["a", "b", "c"]]) {
        let temporary = tempfile::tempdir().unwrap();
        let library = Library::open_or_create(temporary.path(), None).unwrap();
        library.add("a", &small_adapter(1), None).unwrap();
        let half = temporary.path().join("experts/b");
        fs::create_dir(&half).unwrap();
        for file in ["adapter_model.safetensors", "adapter_config.json", "expert.json"] {
            fs::write(half.join(file), "").unwrap();
        }
        fs::write(temporary.path().join(".adding.json"), r#"["b"]"#).unwrap();
        fs::write(temporary.path().join(".lock"), "").unwrap();
        assert_eq!(library.expert_names().unwrap(), ["a"], "it is not listed before either");
        change(&library);
        assert_eq!(library.expert_names().unwrap(), left);
        assert_eq!(half.exists(), left.contains(&"b"));
        assert!(library.adapter(left[left.len() - 1]).is_ok() && !temporary.path().join(".adding.json").exists());
    }
}

/// A kill after an expert appears and before its base is recorded would leave a library that takes any other base's.
#[test]
fn a_base_is_recorded_before_an_addition_is_complete() {
    let temporary = tempfile::tempdir().unwrap();
    let open = |fingerprint: &str| Library::open_or_create(temporary.path(), Some(&base(fingerprint))).unwrap();
    Library::open_or_create(temporary.path(), None).unwrap();
    let (first, late) = (open("aa"), open("bb"));
    first.add("a", &small_adapter(1), None).unwrap();
    assert!(late.add("b", &small_adapter(2), None).is_err());
    assert!(late.replace("c", &small_adapter(3), None).is_err());
    let weights = |folder: &std::path::Path| -> Result<(), lorakit_adapter::AdapterError> {
        fs::write(folder.join(lorakit_adapter::MODEL_WEIGHTS_FILE), "x").unwrap();
        Ok(())
    };
    assert!(late.put_model("full", &ExpertRecord::default(), weights).is_err());
    assert!(!late.contains_model("full"));
    assert_eq!(late.expert_names().unwrap(), ["a"], "what is refused for its base is not left behind");
    assert!(!temporary.path().join(".adding.json").exists());
}

#[test]
fn leftovers_next_to_the_index_and_in_runs_are_removed_and_other_files_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    let run = temporary.path().join("runs/abc");
    fs::create_dir_all(&run).unwrap();
    for path in [temporary.path().join(".new-index"), run.join(".new-checkpoint"), run.join("log.jsonl")] {
        fs::write(path, "half").unwrap();
    }
    drop(library.lock().unwrap());
    assert!(!temporary.path().join(".new-index").exists() && !run.join(".new-checkpoint").exists());
    assert!(run.join("log.jsonl").exists() && temporary.path().join("library.json").exists());
}

#[cfg(unix)]
#[test]
fn links_are_not_followed_out_of_a_library() {
    let temporary = tempfile::tempdir().unwrap();
    let outside = temporary.path().join("outside");
    small_adapter(1).write(&outside).unwrap();
    let root = temporary.path().join("lib");
    let library = Library::open_or_create(&root, None).unwrap();
    library.add("own", &small_adapter(2), None).unwrap();
    std::os::unix::fs::symlink(&outside, root.join("experts/e")).unwrap();
    assert_eq!(library.expert_names().unwrap(), ["e", "own"], "it is listed, so that it can be reported");
    for refused in [
        library.adapter("e").map(drop),
        library.record("e").map(drop),
        library.weights_sha256("e").map(drop),
        library.remove("e"),
        library.add("e", &small_adapter(3), None),
        library.replace("e", &small_adapter(3), None),
    ] {
        let message = chain(refused.unwrap_err());
        assert!(message.contains("experts/e") && message.contains("link"), "{message}");
    }
    assert_eq!(Adapter::read(&outside).unwrap().modules(), small_adapter(1).modules());
    fs::rename(root.join("experts"), temporary.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(temporary.path().join("elsewhere"), root.join("experts")).unwrap();
    assert!(Library::open(&root).unwrap_err().to_string().contains("link"));
}

#[cfg(unix)]
#[test]
fn no_part_of_a_library_leads_out_of_it() {
    let temporary = tempfile::tempdir().unwrap();
    let outside = temporary.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    // Files that taking the lock would remove if they were in the library.
    fs::write(outside.join(".new-mine"), "mine").unwrap();
    let link = |root: &Path, part: &str| std::os::unix::fs::symlink(&outside, root.join(part)).unwrap();
    let assert_refused =
        |part: &str, message: String| assert!(message.contains(part) && message.contains("a link"), "{message}");
    for part in ["experts", "models", "routers", "runs", ".lock"] {
        let root = temporary.path().join(format!("opened-{part}"));
        fs::create_dir(&root).unwrap();
        fs::write(root.join("library.json"), r#"{"format": 1, "name": "l", "base": null}"#).unwrap();
        link(&root, part);
        assert_refused(part, chain(Library::open(&root).unwrap_err()));
        assert_refused(part, chain(Library::open_or_create(&root, Some(&base("aa"))).unwrap_err()));

        let root = temporary.path().join(format!("later-{part}"));
        let library = Library::open_or_create(&root, None).unwrap();
        let _ = (fs::remove_file(root.join(part)), fs::remove_dir_all(root.join(part)));
        link(&root, part);
        assert_refused(part, chain(library.lock().unwrap_err()));
    }
    for hidden in ["experts", ".lock"] {
        let root = temporary.path().join(format!("new-{hidden}"));
        fs::create_dir(&root).unwrap();
        std::os::unix::fs::symlink(outside.join("made"), root.join(hidden)).unwrap();
        assert_refused(hidden, chain(Library::open_or_create(&root, None).unwrap_err()));
    }
    let library = Library::open_or_create(&temporary.path().join("inner"), None).unwrap();
    for part in ["routers", "runs", "models"] {
        fs::create_dir(library.root().join(part)).unwrap();
        link(library.root(), &format!("{part}/x"));
    }
    for refused in [library.router_folder("x"), library.run_folder("x"), library.model_folder("x")] {
        assert_refused("/x", chain(refused.unwrap_err()));
    }
    assert!(library.router_folder("../x").is_err() && library.run_folder("../x").is_err());
    drop(library.lock().unwrap());
    let left: Vec<_> = fs::read_dir(&outside).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".new-mine"], "files outside the library are unchanged");
}

#[test]
fn processes_that_create_one_library_at_once_lose_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    for round in 0..8 {
        let root = temporary.path().join(round.to_string());
        std::thread::scope(|scope| {
            for at in 0..6 {
                let root = &root;
                scope.spawn(move || {
                    let own = base("aa");
                    let library = Library::open_or_create(root, (at % 2 == 0).then_some(&own)).unwrap();
                    let _lock = library.lock().unwrap();
                    library.add(&format!("e{at}"), &small_adapter(at), None).unwrap();
                });
            }
        });
        let library = Library::open(&root).unwrap();
        assert_eq!((library.expert_names().unwrap().len(), library.base()), (6, Some(&base("aa"))));
    }
}

#[test]
fn writing_a_read_adapter_gives_the_same_bytes() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    let adapter: Adapter = small_adapter(1);
    library.add("a", &adapter, None).unwrap();
    library.add("b", &library.adapter("a").unwrap(), None).unwrap();
    assert_eq!(library.weights_sha256("a").unwrap(), library.weights_sha256("b").unwrap());
}

#[test]
fn what_was_left_by_a_killed_creation_is_recovered_by_the_next() {
    for of_another in [false, true] {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        // Killed with the index written under its temporary name, or between two others, while it added an expert.
        let left = [root.join(".new-x1y2z3"), root.join("experts/.new-x1y2z3")];
        fs::create_dir(root.join("experts")).unwrap();
        fs::write(&left[0], "{\"format\": 1,").unwrap();
        if of_another {
            fs::create_dir(&left[1]).unwrap();
        }
        fs::write(root.join(".lock"), "x").unwrap();
        let library = Library::open_or_create(root, Some(&base("f1"))).unwrap();
        assert!(left.iter().all(|path| !path.exists()), "{left:?}");
        assert!(library.expert_names().unwrap().is_empty());
        assert_eq!(fs::read(root.join(".lock")).unwrap(), b"", "nothing is left to recover");
    }
}
