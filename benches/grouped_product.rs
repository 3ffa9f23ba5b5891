//! The low-rank products of many experts over one batch, and the frozen linear layer for comparison.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod phi_slice;

use candle_core::{Device, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};
use lorakit_lora::{GroupedLora, StackBlock, StackLayout, TokenGroup, TokenSelection};
use lorakit_model::weights::{MmapMatrix, TokenPrecision, forward_side_by_side};
use phi_slice::Noise;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOKENS: usize = 256;
const WIDTH: usize = 2560;
const RANK: usize = 4;
const EXPERTS: usize = 64;

fn matrix(rows: usize, columns: usize, seed: u64) -> Tensor {
    Tensor::from_vec(Noise::new(seed).values(rows * columns, 1.0), (rows, columns), &Device::Cpu).unwrap()
}

fn grouped_product(criterion: &mut Criterion) {
    phi_slice::one_candle_thread();
    let ranks = |expert: usize| expert * RANK..(expert + 1) * RANK;
    let block = |expert| vec![StackBlock { a: ranks(expert), b: ranks(expert), columns: 0..WIDTH, scale: 4.0 }];
    let layouts = Arc::new(StackLayout((0..EXPERTS).map(block).collect()));
    let (a, b) = (matrix(EXPERTS * RANK, WIDTH, 1), matrix(EXPERTS * RANK, WIDTH, 2));
    let x = matrix(TOKENS, WIDTH, 3);
    // Each expert takes every sixteenth token, as with four of 64 experts per token.
    let picked = |expert: usize| (0..TOKENS as u32).filter(|t| t % 16 == expert as u32 % 16).collect::<Vec<_>>();
    let group = |expert| TokenGroup {
        expert,
        weights: Some(vec![0.25; TOKENS / 16]),
        tokens: TokenSelection::Indices(picked(expert)),
    };
    let mixed: Arc<[TokenGroup]> = (0..EXPERTS).map(group).collect();
    let one: Arc<[TokenGroup]> =
        [TokenGroup { expert: 0, tokens: TokenSelection::Contiguous(0..TOKENS), weights: None }].into();

    let frozen = MmapMatrix::from_values(Noise::new(4).values(WIDTH * WIDTH, 1.0), WIDTH, WIDTH).unwrap();
    let values = Noise::new(3).values(TOKENS * WIDTH, 1.0);
    let mut bench = criterion.benchmark_group("grouped product");
    bench.sample_size(20);
    bench.bench_function("frozen, for comparison", |bench| {
        let mut y = vec![0.0; TOKENS * WIDTH];
        bench.iter(|| forward_side_by_side(&[&frozen], &values, &mut y, TokenPrecision::Exact));
    });
    let plain = GroupedLora::new(a.clone(), b.clone(), layouts.clone()).unwrap();
    bench.bench_function("one expert", |bench| bench.iter(|| plain.delta(&x, one.clone()).unwrap()));
    bench.bench_function("four a token", |bench| bench.iter(|| plain.delta(&x, mixed.clone()).unwrap()));
    let (a, b) = (Var::from_tensor(&a).unwrap(), Var::from_tensor(&b).unwrap());
    let trained = GroupedLora::new(a.as_tensor().clone(), b.as_tensor().clone(), layouts).unwrap();
    bench.bench_function("four a token, with backward", |bench| {
        bench.iter(|| trained.delta(&x, mixed.clone()).unwrap().sum_all().unwrap().backward().unwrap());
    });
    bench.finish();
}

criterion_group!(benches, grouped_product);
criterion_main!(benches);
