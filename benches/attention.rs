//! Attention over packed rows, forward and backward: one long row, and many short ones.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod phi_slice;

use candle_core::{Device, Tensor, Var};
use criterion::{Criterion, criterion_group, criterion_main};
use lorakit_model::architecture::{RopeConfig, RopeScaling};
use lorakit_model::attention::{AttentionHeads, AttentionLayout, AttentionSegment, self_attention};
use lorakit_model::layer::rope::RopeFrequencies;
use phi_slice::Noise;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn attention(criterion: &mut Criterion) {
    phi_slice::one_candle_thread();
    let phi = AttentionHeads::new(32, 32, 80);
    let small = AttentionHeads::new(8, 4, 8);
    let mut group = criterion.benchmark_group("attention");
    group.sample_size(10);
    for (name, heads, rows, length) in [("phi, 1 x 1024", phi, 1, 1024), ("small, 64 x 32", small, 64, 32)] {
        let rope = RopeConfig { theta: 10000.0, features: heads.features, scaling: RopeScaling::None };
        let positions: Vec<u32> = (0..rows).flat_map(|_| 0..length as u32).collect();
        let angles = RopeFrequencies::new(&rope).angles(&positions);
        let row = |start: usize| start * length..(start + 1) * length;
        let segments: Arc<[AttentionSegment]> =
            (0..rows).map(|r| AttentionSegment { queries: row(r), keys: vec![row(r)] }).collect();
        let (tokens, width) = (rows * length, heads.fused_width());
        let values = Noise::new(3).values(tokens * width, 1.0);
        let qkv = Var::from_vec(values, (tokens, width), &Device::Cpu).unwrap();
        let packing = AttentionLayout::new(angles, segments);
        let attend = |qkv: &Tensor| self_attention(qkv, heads, &packing).unwrap();
        group.bench_function(format!("{name}, forward"), |b| b.iter(|| attend(&qkv.as_detached_tensor())));
        group.bench_function(format!("{name}, with backward"), |b| {
            b.iter(|| attend(qkv.as_tensor()).sum_all().unwrap().backward().unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, attention);
criterion_main!(benches);
