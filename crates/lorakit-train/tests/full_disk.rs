//! What is kept where a checkpoint or an expert cannot be written, as on a full disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tiny_base;

use lorakit_adapter::Library;
use lorakit_model::{Base, BaseOptions};
use lorakit_task::Example;
use lorakit_train::{Job, RunSummary, TrainConfig, TrainError, TrainEvent, Trainer};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

const STEPS: usize = 3;

/// Jobs that end together, and the library that their experts go to.
struct Work {
    base: Base,
    folder: tempfile::TempDir,
    library: Library,
}

impl Work {
    fn new() -> Self {
        let (base, folder) = (tiny_base::base("llama", &BaseOptions::default()), tempfile::tempdir().unwrap());
        let library = Library::open_or_create(folder.path(), Some(base.identity())).unwrap();
        Self { base, folder, library }
    }

    fn train(&self, names: &[&str], mut on_event: impl FnMut(TrainEvent)) -> Result<RunSummary, TrainError> {
        let job = |name: &&str| {
            Job::new(*name, (3..7).map(|token| Example::new(&[token, token + 9], &[token + 4])).collect())
        };
        let config = TrainConfig::from_toml(&format!("max_steps = {STEPS}\nbatch_size = 2\nsave_steps = 0"), "test");
        let (config, stop) = (config.unwrap(), AtomicBool::new(false));
        let (base, library, config) = (&self.base, &self.library, &config);
        let trainer = Trainer { base, library, config, seed: 0, restart: false, part: None, stop: &stop };
        trainer.train_experts(names.iter().map(job).collect(), &mut on_event)
    }

    /// The path of the checkpoint of the only run, once that has begun.
    fn checkpoint(&self) -> PathBuf {
        let run = fs::read_dir(self.folder.path().join("runs")).unwrap().next().unwrap().unwrap();
        run.path().join("pass-0.safetensors")
    }
}

#[test]
fn experts_are_stored_where_their_checkpoint_cannot_be_written() {
    let work = Work::new();
    let result = work.train(&["one", "two"], |event| {
        if matches!(event, TrainEvent::Step { step, .. } if step.step == STEPS) {
            // Nothing can be renamed to it.
            fs::create_dir_all(work.checkpoint().join("full")).unwrap();
        }
    });
    let message = result.err().unwrap().to_string();
    assert!(message.contains("pass-0.safetensors"), "{message}");
    assert_eq!(work.library.expert_names().unwrap(), ["one", "two"]);
    fs::remove_dir_all(work.checkpoint()).unwrap();
    let again = work.train(&["one", "two"], |_| {}).unwrap();
    assert_eq!((again.finished.len(), again.trained.len()), (2, 0));
}

#[test]
fn an_expert_that_cannot_be_stored_is_stored_by_the_next_run_without_training() {
    let work = Work::new();
    let experts = work.folder.path().join("experts");
    let result = work.train(&["one"], |event| {
        if matches!(event, TrainEvent::Step { step, .. } if step.step == STEPS) {
            fs::remove_dir(&experts).unwrap();
        }
    });
    assert!(result.is_err() && work.checkpoint().is_file());
    fs::create_dir(&experts).unwrap();
    let mut steps = 0;
    let again = work.train(&["one"], |event| steps += usize::from(matches!(event, TrainEvent::Step { .. })));
    assert_eq!((again.unwrap().trained, steps), (vec!["one".to_owned()], 0));
    assert!(work.library.contains("one") && !work.checkpoint().exists());
}
