//! A training step of 16 experts at once over pico, with 16 rows per expert.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod phi_slice;
#[allow(dead_code)]
#[path = "../src/base/pico.rs"]
mod pico;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lorakit_model::BaseOptions;
use lorakit_task::{Example, Split, Task};
use lorakit_train::{Job, Pass, PassContext, TrainConfig};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn library_step(criterion: &mut Criterion) {
    phi_slice::one_candle_thread();
    let (base, vocabulary) = (pico::base(&BaseOptions::default()).unwrap(), pico::tokenizer().unwrap());
    let job = |task: &Task| {
        let rows = task.rows(Split::Train, None).unwrap();
        let train = rows.iter().map(|row| Example::encode(row, &vocabulary, 2048).unwrap()).collect();
        Job::new(&task.name, train)
    };
    let jobs: Vec<Job> = Task::load("suite:skills", None).unwrap().iter().take(16).map(job).collect();
    let settings = "max_steps = 1000000\ndropout = 0.0\neval_steps = 0";
    let settings = TrainConfig::from_toml(settings, "the bench").unwrap();
    let mut pass =
        Pass::new(PassContext { base: &base, config: &settings, seed: 0, batch_tokens: 2048 }, &jobs).unwrap();
    let tokens = pass.step().unwrap().tokens;
    let mut group = criterion.benchmark_group("library");
    group.sample_size(10).throughput(Throughput::Elements(tokens as u64));
    group.bench_function("step of 16 experts", |b| b.iter(|| pass.step().unwrap().tokens));
    group.finish();
}

criterion_group!(benches, library_step);
criterion_main!(benches);
