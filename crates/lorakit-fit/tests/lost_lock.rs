//! A process that is suspended may lose the lock of a library, and changes nothing when it goes on.
#![allow(clippy::unwrap_used)]

use lorakit_adapter::Library;
use lorakit_fit::cluster::two_stage_mbc;
use lorakit_fit::training::TrainContext;
use lorakit_fit::{Reporter, TrainingHooks};
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
