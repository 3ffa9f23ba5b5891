//! Libraries: experts come and go whole, and nothing leads out of the folder.

use std::collections::BTreeMap;
use std::fs;

use lorakit_adapter::sha256::sha256_of_file;
use lorakit_adapter::{Adapter, BaseIdentity, ExpertRecord, Library, TaskRecord, WEIGHTS_FILE};

use crate::small_adapter;

fn base(fingerprint: &str) -> BaseIdentity {
    BaseIdentity {
        name: "some/base".into(),
        architecture: "MistralForCausalLM".into(),
        dimensions: BTreeMap::from([("hidden_size".into(), 64)]),
        fingerprint: fingerprint.into(),
    }
}

fn record() -> ExpertRecord {
    ExpertRecord {
        tasks: vec![TaskRecord { name: "t".into(), path: "t.json".into(), sha256: "00".into(), split_seed: 3 }],
        settings: serde_json::json!({ "rank": 2 }),
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
fn a_name_that_is_taken_is_refused_and_replacing_is_explicit() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    library.add("a", &small_adapter(1), None).unwrap();
    assert!(library.add("a", &small_adapter(2), None).unwrap_err().to_string().contains("exists already"));
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
fn a_library_keeps_to_its_base() {
    let temporary = tempfile::tempdir().unwrap();
    let root = temporary.path().join("lib");
    Library::open_or_create(&root, None).unwrap();
    assert_eq!(Library::open_or_create(&root, Some(&base("aa"))).unwrap().base(), Some(&base("aa")));
    assert_eq!(Library::open(&root).unwrap().base(), Some(&base("aa")));
    let renamed = BaseIdentity { name: "/elsewhere".into(), ..base("aa") };
    assert!(Library::open_or_create(&root, Some(&renamed)).is_ok());
    let error = format!("{:#}", Library::open_or_create(&root, Some(&base("bb"))).unwrap_err());
    assert!(error.contains("fingerprint") && error.contains("aa") && error.contains("bb"), "{error}");
    let wider = BaseIdentity { dimensions: BTreeMap::from([("hidden_size".into(), 128)]), ..base("aa") };
    let error = format!("{:#}", Library::open_or_create(&root, Some(&wider)).unwrap_err());
    assert!(error.contains("hidden_size") && error.contains("128"), "{error}");
}

#[test]
fn what_is_no_library_is_neither_opened_nor_overwritten() {
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
fn what_a_killed_writer_left_is_settled_by_the_next_one() {
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
fn an_adapter_is_written_normalised() {
    let temporary = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(temporary.path(), None).unwrap();
    let adapter: Adapter = small_adapter(1);
    library.add("a", &adapter, None).unwrap();
    library.add("b", &library.adapter("a").unwrap(), None).unwrap();
    assert_eq!(library.weights_sha256("a").unwrap(), library.weights_sha256("b").unwrap());
}
