//! A process that is suspended may lose the lock of a library, and changes nothing when it goes on.
#![allow(clippy::unwrap_used)]

use lorakit_adapter::{Adapter, Library, LibraryLock, LowRank, Matrix};
use lorakit_fit::cluster::two_stage_mbc;
use lorakit_fit::training::TrainContext;
use lorakit_fit::{FitError, Reporter, TrainingHooks};
use lorakit_model::{Base, BaseOptions};
use lorakit_task::{Task, Tokenizer};
use lorakit_train::TrainConfig;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Takes a lock over, as another machine does, when the first stage begins.
struct Successor(PathBuf);

impl Reporter for Successor {
    fn status(&self, text: &str) {
        if text == "experts per task:" {
            let mut names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name());
            assert!(names.any(|name| name.to_string_lossy().starts_with(".lease-")), "the lock is a lease");
            fs::write(self.0.join(".lease-99"), "process 1 on another machine\n").unwrap();
        }
    }

    fn warn(&self, _: &str) {}

    fn training(&self) -> TrainingHooks<'_> {
        TrainingHooks { stop: Box::new(Box::new(AtomicBool::new(false))), on_event: Box::new(|_| ()) }
    }
}

/// A library whose lock, a lease, another process has taken over, opened for a base that is not recorded.
fn taken_over(root: &Path) -> (Library, LibraryLock) {
    let pico = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/pico");
    let base = Base::open(&pico, &BaseOptions::default()).unwrap();
    let library = Library::open_or_create(root, Some(base.identity())).unwrap();
    fs::write(root.join(".lease"), "60\n").unwrap();
    let lock = library.lock().unwrap();
    fs::write(root.join(".lease-99"), "process 1 on another machine\n").unwrap();
    (library.guarded_by(&[&lock]), lock)
}

#[test]
fn an_addition_leaves_that_of_another_process_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let (library, _lock) = taken_over(&folder.path().join("library"));
    let adding = library.root().join(".adding.json");
    fs::write(&adding, "[\"theirs\"]").unwrap();
    let matrix = |rows: usize, columns: usize| Matrix::new(rows, columns, vec![1.0; rows * columns]).unwrap();
    let update = LowRank::new(matrix(1, 2), matrix(3, 1), 1.0).unwrap();
    let adapter = Adapter::new([("layers.0.q_proj".to_owned(), update)].into());
    let message = FitError::from(library.add("ours", &adapter, None).unwrap_err()).chain();
    assert!(message.contains("taken over by process 1 on another machine"), "{message}");
    assert_eq!(fs::read_to_string(&adding).unwrap(), "[\"theirs\"]");
    assert!(!library.contains("ours"));
}

#[test]
fn no_base_is_recorded_after_a_takeover() {
    let folder = tempfile::tempdir().unwrap();
    let (library, _lock) = taken_over(&folder.path().join("library"));
    let message = FitError::from(library.record_base().unwrap_err()).chain();
    assert!(message.contains("taken over by process 1 on another machine"), "{message}");
    assert_eq!(library.recorded_base().unwrap(), None);
}

#[test]
fn the_library_of_experts_per_task_is_not_changed_after_a_takeover() {
    let pico = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/pico");
    let (base, tokenizer) = (Base::open(&pico, &BaseOptions::default()).unwrap(), Tokenizer::open(&pico).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let task = |name: &str| {
        let path = folder.path().join(format!("{name}.jsonl"));
        fs::write(&path, format!("{{\"input\": \"{name}\", \"output\": \"b\"}}\n").repeat(4)).unwrap();
        Task::load(path.to_str().unwrap(), None).unwrap().remove(0)
    };
    let (tasks, root) = ([task("one"), task("two")], folder.path().join("library"));
    let library = Library::open_or_create(&root, Some(base.identity())).unwrap();
    fs::write(root.join(".lease"), "60\n").unwrap();
    let reporter = Successor(root.join("private"));
    let (base, tokenizer, reporter) = (&base, &tokenizer, &reporter);
    let context = TrainContext { base, tokenizer, seed: 0, restart: false, part: None, reporter };
    let settings = TrainConfig::from_toml("max_steps = 3\nbatch_size = 1", "test").unwrap();
    let result = two_stage_mbc(&context, &library, &tasks, "2".parse().unwrap(), &settings);
    let message = result.unwrap_err().chain();
    assert!(message.contains("taken over by process 1 on another machine"), "{message}");
    assert!(Library::open(&root.join("private")).unwrap().expert_names().unwrap().is_empty());
}
