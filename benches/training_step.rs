//! A training step of one expert over a slice of Phi-2: two rows of 256 tokens, LoRA of rank 4 on attention.
//! `phi_slice` describes the environment variables that select the device, the base and the rows.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod phi_slice;

use candle_core::DType;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use lorakit_task::Example;
use lorakit_train::{Job, Pass, PassContext, TrainConfig};
use phi_slice::Noise;
use std::cell::LazyCell;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const VOCABULARY: usize = 51200;

/// Rows of `length` tokens, of which the first `prompt` carry no loss.
fn job(rows: usize, length: usize, vocabulary: usize, prompt: usize) -> Job {
    let mut noise = Noise::new(1);
    let train = (0..rows).map(|_| {
        let tokens = noise.tokens(length + 1, vocabulary);
        Example::new(&tokens[..prompt], &tokens[prompt..])
    });
    Job::new("expert", train.collect())
}

fn training_step(criterion: &mut Criterion) {
    phi_slice::one_candle_thread();
    let (rows, length) = (phi_slice::set("BENCH_ROWS", 2), phi_slice::set("BENCH_TOKENS", 256));
    let settings = format!("max_steps = 1000000\nbatch_size = {rows}\ndropout = 0.0\neval_steps = 0");
    let settings = TrainConfig::from_toml(&settings, "the bench").unwrap();
    let mut group = criterion.benchmark_group("training step");
    group.sample_size(10).throughput(Throughput::Elements((rows * length) as u64));
    for (dtype, name) in [(DType::F32, "f32"), (DType::BF16, "bf16")] {
        // Opened on first use, so that a bench's memory does not include another bench's base.
        let base = LazyCell::new(|| phi_slice::subject(VOCABULARY, dtype));
        for (prompt, share) in [(1, "every token"), (1 + length * 4 / 5, "a fifth of the tokens")] {
            group.bench_function(format!("{name}, loss on {share}"), |b| {
                let jobs = [job(rows, length, base.config().vocabulary, prompt)];
                let mut pass = Pass::new(
                    PassContext { base: &base, config: &settings, seed: 0, batch_tokens: rows * length },
                    &jobs,
                )
                .unwrap();
                b.iter(|| pass.step().unwrap().tokens);
            });
        }
    }
    group.finish();
}

criterion_group!(benches, training_step);
criterion_main!(benches);
