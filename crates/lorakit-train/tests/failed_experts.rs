//! Divergence of one expert stops only that expert.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;
mod tiny_base;

use candle_core::{Device, Tensor, safetensors};
use differences::difference_of_values;
use lorakit_adapter::Library;
use lorakit_format::rng::Key;
use lorakit_lora::Patches;
use lorakit_model::{Base, BaseOptions, TokenBatch};
use lorakit_task::Example;
use lorakit_train::{Job, Pass, PassContext, TrainConfig, Trainer};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// A token with a NaN embedding, which only selected rows contain.
const POISON: u32 = 31;

fn source() -> PathBuf {
    // Its LM head is not tied, so that a broken embedding affects one token only.
    tiny_base::folder("llama")
}

fn settings(text: &str) -> TrainConfig {
    TrainConfig::from_toml(text, "test").unwrap()
}

/// A copy of the base in which the embedding of one token is NaN.
fn poisoned(place: &Path) -> Base {
    let source = source();
    for entry in std::fs::read_dir(&source).unwrap().flatten() {
        std::fs::copy(entry.path(), place.join(entry.file_name())).unwrap();
    }
    let file = place.join("model.safetensors");
    let mut tensors = safetensors::load(&file, &Device::Cpu).unwrap();
    let embedding = &tensors["model.embed_tokens.weight"];
    let (rows, columns) = embedding.dims2().unwrap();
    let mut values: Vec<f32> = embedding.flatten_all().unwrap().to_vec1().unwrap();
    values[POISON as usize * columns] = f32::NAN;
    tensors
        .insert("model.embed_tokens.weight".into(), Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap());
    safetensors::save(&tensors, &file).unwrap();
    Base::open(place, &BaseOptions::default()).unwrap()
}

fn job(name: &str, rows: usize) -> Job {
    let row = |i: usize| {
        let mut stream = Key::new(i as u64, name).stream();
        let mut ids = |n| (0..n).map(|_| 3 + stream.below(27) as u32).collect::<Vec<_>>();
        Example::new(&ids(3 + i % 5), &ids(2 + i % 3))
    };
    Job {
        validation: (rows..rows + 4).map(row).collect(),
        task_rows: vec![rows],
        ..Job::new(name, (0..rows).map(row).collect())
    }
}

#[test]
fn a_nan_loss_stops_only_its_expert_and_names_step_and_row() {
    let place = tempfile::tempdir().unwrap();
    let base = poisoned(place.path());
    let settings = settings("num_epochs = 2\nbatch_size = 4\nexperts_per_pass = 3\nlearning_rate = 1e-3");
    let mut jobs = vec![job("one", 16), job("poisoned", 32), job("two", 24)];
    jobs[1].train[20].tokens[1] = POISON;
    let library = Library::open_or_create(&place.path().join("library"), Some(base.identity())).unwrap();
    let stop = AtomicBool::new(false);
    let train = |jobs: &[Job], restart| {
        let (base, library, config) = (&base, &library, &settings);
        let trainer = Trainer { base, library, config, seed: 0, restart, part: None, stop: &stop };
        trainer.train_experts(jobs.to_vec(), &mut |_| {}).unwrap()
    };
    let summary = train(&jobs, false);
    assert_eq!(
        (summary.trained.as_slice(), library.expert_names().unwrap()),
        (&["one".to_owned(), "two".to_owned()][..], vec!["one".to_owned(), "two".to_owned()])
    );
    let (name, why) = &summary.failed[0];
    assert_eq!(name, "poisoned");
    assert!(why.contains("NaN") && why.contains("row 21 the worst") && why.contains("step"), "{why}");

    let again = train(&jobs, false);
    assert_eq!(
        (again.trained.len(), again.finished.len(), &again.failed),
        (0, 2, &summary.failed),
        "reported again, not trained"
    );
    let restarted = train(&jobs, true);
    assert_eq!((restarted.trained.len(), restarted.finished.len(), &restarted.failed), (0, 2, &summary.failed));
    jobs[1].train.remove(20);
    let cured = train(&jobs, false);
    assert_eq!((cured.trained.as_slice(), cured.finished.len()), (&["poisoned".to_owned()][..], 2));
}

#[test]
fn settings_that_a_program_has_set_are_checked_before_training() {
    let place = tempfile::tempdir().unwrap();
    let base = poisoned(place.path());
    let library = Library::open_or_create(&place.path().join("library"), Some(base.identity())).unwrap();
    let config = &TrainConfig { batch_size: 0, ..TrainConfig::default() };
    let (base, library, stop) = (&base, &library, &AtomicBool::new(false));
    let trainer = Trainer { base, library, config, seed: 0, restart: false, part: None, stop };
    let jobs = || vec![job("one", 16)];
    let errors = [trainer.train_experts(jobs(), &mut |_| {}).err(), trainer.plan_experts(jobs()).err()];
    for error in errors.map(|error| error.unwrap().to_string()) {
        assert_eq!(error, "setting `batch_size` is 0; expected a whole number above zero");
    }
}

#[test]
fn a_stopped_expert_does_not_affect_the_others() {
    let place = tempfile::tempdir().unwrap();
    let base = poisoned(place.path());
    let settings = settings("max_steps = 6\nbatch_size = 4\ndropout = 0.1\nlearning_rate = 1e-2");
    let mut jobs = [job("one", 16), job("poisoned", 16)];
    let bytes = |jobs: &[Job]| {
        let mut pass =
            Pass::new(PassContext { base: &base, config: &settings, seed: 0, batch_tokens: 1000 }, jobs).unwrap();
        while pass.is_running() {
            pass.step().unwrap();
        }
        let adapter = pass.adapter(0).unwrap();
        let matrices = adapter.modules().values().flat_map(|pair| [pair.a().clone(), pair.b().clone()]);
        (matrices.flat_map(|m| m.values().into_owned()).collect::<Vec<f32>>(), pass.progress()[1].clone())
    };
    let (beside_a_healthy_one, healthy) = bytes(&jobs);
    jobs[1].train.iter_mut().for_each(|row| row.tokens[0] = POISON);
    let (beside_a_failed_one, failed) = bytes(&jobs);
    assert!(healthy.failure.is_none() && failed.failure.is_some());
    let largest = difference_of_values(&beside_a_healthy_one, &beside_a_failed_one);
    assert!(largest < 1e-3, "{largest}");
    assert!(beside_a_failed_one.iter().all(|value| value.is_finite()));
}

#[test]
fn a_nan_validation_loss_stops_the_expert() {
    let place = tempfile::tempdir().unwrap();
    let base = poisoned(place.path());
    let settings = settings("max_steps = 6\nbatch_size = 4\neval_steps = 2");
    let mut jobs = [job("one", 16), job("poisoned", 16)];
    jobs[1].validation[2].tokens[0] = POISON;
    let mut pass =
        Pass::new(PassContext { base: &base, config: &settings, seed: 0, batch_tokens: 1000 }, &jobs).unwrap();
    while pass.is_running() {
        pass.step().unwrap();
    }
    let why = pass.progress()[1].failure.clone().unwrap();
    assert!(why.contains("after step 2") && why.contains("row 3 of its validation rows"), "{why}");
    assert_eq!((pass.progress()[0].losses.len(), pass.progress()[0].validation.len()), (6, 3));
}

#[test]
fn everything_trained_has_a_gradient_and_the_base_is_unchanged() {
    let source = source();
    let base = Base::open(&source, &BaseOptions::default()).unwrap();
    let mut packed = TokenBatch::default();
    let row = &job("one", 16).train[0];
    packed.push(row.prompt(), row.target(), None);
    let losses = || base.nll(&packed, &Patches::none()).unwrap().to_vec1::<f32>().unwrap();
    let before = losses();
    let settings = settings("max_steps = 3\nbatch_size = 4\nlearning_rate = 1e-1\ntarget_modules = 'all-linear'");
    let jobs = [job("one", 16), job("two", 16)];
    let mut pass =
        Pass::new(PassContext { base: &base, config: &settings, seed: 0, batch_tokens: 1000 }, &jobs).unwrap();
    while pass.is_running() {
        // A step fails if a variable has no gradient.
        pass.step().unwrap();
    }
    for expert in 0..2 {
        let adapter = pass.adapter(expert).unwrap();
        assert_eq!(adapter.modules().len(), base.modules().len());
        assert!(adapter.modules().values().all(|update| update.norm() > 0.0), "every module was trained");
    }
    assert_eq!(losses(), before);
    let trainable = Base::open(&source, &BaseOptions { trainable: true, ..BaseOptions::default() }).unwrap();
    let refused = Pass::new(PassContext { base: &trainable, config: &settings, seed: 0, batch_tokens: 1000 }, &jobs)
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("frozen"), "{refused}");
}
