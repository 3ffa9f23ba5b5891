//! A training step of one expert over a slice of Phi-2: two rows of 256 tokens, LoRA of rank 4 on the attention.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod phi_slice;

use candle_core::DType;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lorakit_model::Options;
use lorakit_task::{Cut, Example};
use lorakit_train::{Job, Pass, Settings};
use phi_slice::Noise;
use std::cell::LazyCell;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: usize = 2;
const LENGTH: usize = 256;
const VOCABULARY: usize = 51200;

/// Rows that read `LENGTH` tokens, of which the first `prompt` are only read.
fn job(prompt: usize) -> Job {
    let mut noise = Noise::new(1);
    let train = (0..ROWS).map(|_| {
        let mut tokens = noise.tokens(LENGTH + 1, VOCABULARY);
        let target = tokens.split_off(prompt);
        Example { prompt: tokens, target, cut: Cut::default() }
    });
    Job {
        name: "expert".into(),
        tasks: Vec::new(),
        train: train.collect(),
        validation: Vec::new(),
        start: None,
        sharers: 1,
    }
}

fn training_step(criterion: &mut Criterion) {
    phi_slice::one_candle_thread();
    let settings = "max_steps = 1000000\nbatch_size = 2\ndropout = 0.0\neval_steps = 0";
    let settings = Settings::from_toml(settings, "the bench").unwrap();
    let mut group = criterion.benchmark_group("training step");
    group.sample_size(10).throughput(Throughput::Elements((ROWS * LENGTH) as u64));
    for (dtype, name) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
        // Opened by the first that is run: the memory of one bench is not to be that of another's base.
        let base =
            LazyCell::new(|| phi_slice::base(2, VOCABULARY, &Options { dtype: Some(dtype), ..Options::default() }));
        for (prompt, share) in [(1, "every token"), (1 + LENGTH * 4 / 5, "a fifth of the tokens")] {
            let jobs = [job(prompt)];
            group.bench_function(format!("{name}, loss on {share}"), |b| {
                let mut pass = Pass::new(&base, &jobs, &settings, 0, 2048).unwrap();
                b.iter(|| pass.advance().unwrap().tokens);
            });
        }
    }
    group.finish();
}

criterion_group!(benches, training_step);
criterion_main!(benches);
