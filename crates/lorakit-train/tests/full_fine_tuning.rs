//! Full fine-tuning: training, the stored model, and repeated runs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod tiny_base;

use candle_core::{DType, Device, Tensor, safetensors};
use lorakit_adapter::Library;
use lorakit_format::rng::Key;
use lorakit_model::{Base, BaseOptions, Checkpoint};
use lorakit_task::Example;
use lorakit_train::{
    BoxError, FullFineTuning, Job, LossHistory, RunSummary, StepInterval, TrainConfig, TrainEvent, Trainer,
};
use std::cell::Cell;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

fn folder() -> PathBuf {
    tiny_base::folder("mistral")
}

fn rows(seed: u64, n: u64) -> Vec<Example> {
    let row = |i: u64| {
        let mut stream = Key::new(seed, "rows").number(i).stream();
        // The answer repeats the question, so that there is something to learn.
        let prompt: Vec<u32> = (0..6).map(|_| 3 + stream.below(6) as u32).collect();
        Example::new(&prompt, &prompt[..4])
    };
    (0..n).map(row).collect()
}

fn job() -> Job {
    Job { validation: rows(1, 8), ..Job::new("full", rows(0, 48)) }
}

fn settings() -> TrainConfig {
    TrainConfig {
        learning_rate: 3e-3,
        max_steps: Some(24),
        batch_size: 8,
        max_grad_norm: 1.0,
        eval_steps: Some(StepInterval::Steps(8)),
        save_steps: StepInterval::NEVER,
        ..TrainConfig::default()
    }
}

/// Trains into `library`, stopping after `stop_after` steps as Ctrl-C does. Also returns how often the base was opened.
fn train(source: &Path, library: &Library, settings: &TrainConfig, stop_after: Option<usize>) -> (RunSummary, usize) {
    let frozen = Base::open(source, &BaseOptions::default()).unwrap();
    let opened = Cell::new(0);
    let open = || -> Result<Base, BoxError> {
        opened.set(opened.get() + 1);
        Ok(Base::open(source, &BaseOptions { trainable: true, ..BaseOptions::default() })?)
    };
    let write_model_files = |folder: &Path| -> Result<(), BoxError> {
        fs::copy(source.join("config.json"), folder.join("config.json"))?;
        Ok(())
    };
    let untrained = || Ok(Checkpoint::open(source)?.stored(frozen.config().descriptor.unused));
    let model = FullFineTuning { open: &open, write_model_files: &write_model_files, untrained: &untrained };
    let stop = AtomicBool::new(false);
    let trainer =
        Trainer { base: &frozen, library, config: settings, seed: 3, restart: false, part: None, stop: &stop };
    let mut watch = |event: TrainEvent| {
        if let TrainEvent::Step { step, .. } = event
            && Some(step.step) == stop_after
        {
            stop.store(true, Ordering::Relaxed);
        }
    };
    let summary = trainer.train_model(&model, job(), &mut watch).unwrap();
    (summary, opened.get())
}

fn weights(library: &Library) -> Vec<u8> {
    fs::read(library.model_folder("full").unwrap().join("model.safetensors")).unwrap()
}

#[test]
fn a_model_learns_is_stored_as_a_base_and_is_not_trained_again() {
    let source = folder();
    let before = fs::read(source.join("model.safetensors")).unwrap();
    let work = tempfile::tempdir().unwrap();
    let library = Library::open_or_create(&work.path().join("l"), None).unwrap();
    let (summary, opened) = train(&source, &library, &settings(), None);
    assert_eq!((summary.trained, opened), (vec!["full".to_string()], 1));
    assert_eq!(fs::read(source.join("model.safetensors")).unwrap(), before, "the base on disk is unchanged");

    let record = library.model_record("full").unwrap().unwrap();
    let losses: Vec<f64> = record.losses.field("train").unwrap().unwrap();
    assert!(losses[23] < 0.8 * losses[0], "{losses:?}");
    assert_eq!((record.tokens, record.initial_seed), (24 * 8 * 4, None));
    let base = Base::open(&source, &BaseOptions::default()).unwrap();
    let trained = Base::open(&library.model_folder("full").unwrap(), &BaseOptions::default()).unwrap();
    assert_ne!(trained.identity().fingerprint, base.identity().fingerprint);
    assert_eq!(trained.parameters(), base.parameters());
    // The file holds the weights of the best validation, not the last ones.
    let loss = |base: &Base| {
        let rows = rows(1, 8);
        let rows: Vec<_> = rows.iter().map(|row| (0, row)).collect();
        let losses = lorakit_train::example_losses_by_token(base, &Default::default(), &rows, 512).unwrap();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    let best = LossHistory::best_of(&record).unwrap().1;
    assert!((loss(&trained) - best).abs() < 1e-5 && best < loss(&base), "{} {best} {}", loss(&trained), loss(&base));

    let (again, opened) = train(&source, &library, &settings(), None);
    assert_eq!((again.trained.len(), again.finished, opened), (0, vec!["full".to_string()], 0));
    // Adapter settings have no effect.
    let (other, _) = train(&source, &library, &TrainConfig { rank: 9, ..settings() }, None);
    assert_eq!(other.finished, ["full"]);
}

#[test]
fn an_interrupted_run_ends_with_the_same_bytes() {
    let source = folder();
    let work = tempfile::tempdir().unwrap();
    let library = |name: &str| Library::open_or_create(&work.path().join(name), None).unwrap();
    let (straight, halting) = (library("straight"), library("halting"));
    train(&source, &straight, &settings(), None);
    assert!(train(&source, &halting, &settings(), Some(11)).0.stopped);
    assert!(!halting.contains_model("full"), "nothing unfinished is kept as a model");
    assert_eq!(train(&source, &halting, &settings(), None).0.trained, ["full"]);
    assert!(weights(&straight) == weights(&halting));
}

/// As in transformers' Trainer.
#[test]
fn norms_and_biases_do_not_decay() {
    let work = tempfile::tempdir().unwrap();
    // One step, so that both have the same gradients; Phi has both.
    let trained = |name: &str, weight_decay: f64| {
        let library = Library::open_or_create(&work.path().join(name), None).unwrap();
        let settings = TrainConfig {
            max_steps: Some(1),
            warmup_ratio: 0.0,
            eval_steps: Some(StepInterval::NEVER),
            weight_decay,
            ..settings()
        };
        train(&tiny_base::folder("phi"), &library, &settings, None);
        safetensors::load(library.model_folder("full").unwrap().join("model.safetensors"), &Device::Cpu).unwrap()
    };
    let (without, with) = (trained("without", 0.0), trained("with", 0.5));
    for (name, tensor) in &without {
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(tensor) == values(&with[name]), tensor.rank() == 1, "{name}");
    }
}

/// Of a multimodal folder the text model trains; what is of images stays as it is.
#[test]
fn the_text_model_of_a_multimodal_folder_trains_beside_its_other_tensors() {
    let (source, text) = (tempfile::tempdir().unwrap(), tiny_base::folder("gemma3"));
    let config = fs::read_to_string(text.join("config.json")).unwrap();
    let config = format!("{{\"model_type\": \"gemma3\", \"text_config\": {config}, \"vision_config\": {{}}}}");
    fs::write(source.path().join("config.json"), config).unwrap();
    let tensors = safetensors::load(text.join("model.safetensors"), &Device::Cpu).unwrap();
    let renamed =
        tensors.into_iter().map(|(name, tensor)| (name.replacen("model.", "language_model.model.", 1), tensor));
    let mut renamed: HashMap<String, Tensor> = renamed.collect();
    let vision = Tensor::new(&[[1.5f32, -2.0, 0.25]], &Device::Cpu).unwrap().to_dtype(DType::BF16).unwrap();
    renamed.insert("vision_tower.embeddings.weight".to_owned(), vision.clone());
    safetensors::save(&renamed, source.path().join("model.safetensors")).unwrap();

    let library = Library::open_or_create(&source.path().join("l"), None).unwrap();
    train(source.path(), &library, &settings(), None);
    let model = library.model_folder("full").unwrap();
    let written = safetensors::load(model.join("model.safetensors"), &Device::Cpu).unwrap();
    let kept = &written["vision_tower.embeddings.weight"];
    assert_eq!((written.len(), kept.dtype()), (renamed.len(), DType::BF16));
    let values = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(values(kept), values(&vision));
    let [before, after] = [source.path(), &model].map(|folder| Base::open(folder, &BaseOptions::default()).unwrap());
    let rows = rows(1, 8);
    let loss = |base: &Base| {
        let rows: Vec<_> = rows.iter().map(|row| (0, row)).collect();
        lorakit_train::example_losses_by_token(base, &Default::default(), &rows, 512).unwrap().iter().sum::<f64>()
    };
    assert!(loss(&after) < loss(&before));
}
