//! Training compared with PyTorch: losses, gradient norms and the final adapter of a short run, alone and in a pass.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod binary;
mod differences;

use binary::{PEFT_FIXTURES, SHARED_ORACLES, peft_fixture, shared_oracle};
use candle_core::{DType, Device, safetensors};
use differences::difference_of_values;
use lorakit_adapter::Adapter;
use lorakit_model::{Base, BaseOptions};
use lorakit_task::Example;
use lorakit_train::{Init, Job, Pass, PassContext, TrainConfig};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The reference run on one base.
struct Oracle {
    folder: PathBuf,
    base: Base,
    settings: TrainConfig,
    losses: Vec<f64>,
    norms: Vec<f64>,
}

impl Oracle {
    fn open(folder: PathBuf) -> Self {
        let json = |name: &str| -> Value {
            serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
        };
        let (expected, adapter) = (json("expected.json"), json("train_init/adapter_config.json"));
        let numbers = |value: &Value| value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect();
        let targets: Vec<&str> =
            expected["targets"].as_array().unwrap().iter().map(|target| target.as_str().unwrap()).collect();
        let mut settings = TrainConfig::default();
        for assignment in [
            &format!("rank={}", adapter["r"]),
            &format!("alpha={}", adapter["lora_alpha"]),
            "dropout=0",
            "learning_rate=1e-2",
            "lr_scheduler=constant",
            "warmup_ratio=0",
            "max_grad_norm=1.0",
            "batch_size=3",
            "eval_steps=0",
            &format!("max_steps={}", expected["train"]["losses"].as_array().unwrap().len()),
            &format!("target_modules={}", targets.join(",")),
        ] {
            settings.set(assignment).unwrap();
        }
        let base = Base::open(&folder.join("base"), &BaseOptions::default()).unwrap();
        let train = &expected["train"];
        Self { base, settings, losses: numbers(&train["losses"]), norms: numbers(&train["grad_norms"]), folder }
    }

    /// The three rows as one expert's job.
    fn job(&self, name: &str) -> Job {
        let tensors = safetensors::load(self.folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let ids: Vec<Vec<u32>> = tensors["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
        let labels: Vec<Vec<i64>> = tensors["labels"].to_vec2().unwrap();
        let row = |(ids, labels): (&Vec<u32>, &Vec<i64>)| {
            // Tokens of the prompt, at the start of the row, carry no loss.
            let prompt = labels.iter().take_while(|label| **label == -100).count();
            Example::new(&ids[..prompt], &ids[prompt..])
        };
        let start = Adapter::read(&self.folder.join("train_init")).unwrap();
        Job {
            init: Some(Init { adapter: start, origin: serde_json::Value::Null, seen: Vec::new() }),
            ..Job::new(name, ids.iter().zip(&labels).map(row).collect())
        }
    }

    /// Another expert, trained on the reversed rows.
    fn other(&self, name: &str) -> Job {
        let mut job = self.job(name);
        job.train.iter_mut().for_each(|row| {
            let (prompt, target) = row.tokens.split_at_mut(row.prompt_len);
            prompt.reverse();
            target.reverse();
        });
        job.init = None;
        job
    }

    /// Trains the jobs in one pass and compares the one named `oracle` with PyTorch.
    fn check(&self, jobs: &[Job], tolerance: f64) {
        let place = jobs.iter().position(|job| job.name == "oracle").unwrap();
        let mut pass =
            Pass::new(PassContext { base: &self.base, config: &self.settings, seed: 0, batch_tokens: 2048 }, jobs)
                .unwrap();
        while pass.steps_done() < pass.steps() {
            pass.step().unwrap();
        }
        let progress = &pass.progress()[place];
        let where_ = self.folder.display();
        for (what, found, expected) in
            [("losses", &progress.losses, &self.losses), ("norms", &progress.norms, &self.norms)]
        {
            assert_eq!(found.len(), expected.len());
            for (step, (found, expected)) in found.iter().zip(expected).enumerate() {
                let relative = (f64::from(*found) / expected - 1.0).abs();
                assert!(
                    relative < tolerance,
                    "{where_}, {what}, step {step}: {found}, expected {expected}, {relative:.1e} apart"
                );
            }
        }
        let difference = largest_difference(&pass.adapter(place).unwrap(), &self.folder.join("train_final"));
        assert!(difference < 1e-3, "{where_}: the final adapter differs by {difference}");
    }
}

fn largest_difference(adapter: &Adapter, expected: &Path) -> f32 {
    let expected = Adapter::read(expected).unwrap();
    assert_eq!(adapter.modules().keys().collect::<Vec<_>>(), expected.modules().keys().collect::<Vec<_>>());
    let pairs = adapter.modules().iter().flat_map(|(path, own)| {
        let other = &expected.modules()[path];
        [
            (own.a().values().into_owned(), other.a().values().into_owned()),
            (own.b().values().into_owned(), other.b().values().into_owned()),
        ]
    });
    pairs.map(|(own, other)| difference_of_values(&own, &other)).max_by(f32::total_cmp).unwrap()
}

fn check_alone(oracle: &Oracle) {
    oracle.check(&[oracle.job("oracle")], 1e-4);
}

fn check_in_company(oracle: &Oracle) {
    oracle.check(&[oracle.other("before"), oracle.job("oracle"), oracle.other("behind")], 1e-3);
}

#[test]
fn one_expert_matches_pytorch() {
    for name in PEFT_FIXTURES {
        check_alone(&Oracle::open(peft_fixture(name)));
    }
}

#[test]
#[ignore = "needs ../shared"]
fn one_expert_matches_pytorch_on_shared_bases() {
    for name in SHARED_ORACLES {
        check_alone(&Oracle::open(shared_oracle(name)));
    }
}

#[test]
fn other_experts_in_a_pass_change_nothing() {
    for name in PEFT_FIXTURES {
        check_in_company(&Oracle::open(peft_fixture(name)));
    }
}

#[test]
#[ignore = "needs ../shared"]
fn other_experts_in_a_pass_change_nothing_on_shared_bases() {
    for name in SHARED_ORACLES {
        check_in_company(&Oracle::open(shared_oracle(name)));
    }
}
