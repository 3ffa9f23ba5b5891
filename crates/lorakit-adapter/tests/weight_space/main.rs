//! Tests of the public API: adapters, their folders and their libraries.
//!
//! Tests that need the reference data in `../shared`, next to the workspace, are ignored by default.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod adapter_folders;
mod libraries;
mod low_rank_algebra;
mod malformed_adapters;
mod mttl_libraries;
mod oracles;
mod outside_layers;
mod peft_configs;
mod published_adapters;

use std::collections::BTreeMap;
use std::path::PathBuf;

use lorakit_adapter::{Adapter, BaseModule, LowRank, Matrix, ModuleKind};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The reference data at `path`, which must exist.
#[track_caller]
fn shared(path: &str) -> PathBuf {
    let found = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    assert!(found.exists(), "../shared/{path} does not exist");
    found
}

/// The messages of an error and its sources, as the program prints them.
fn chain(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}

/// A random matrix of values in [-1, 1), determined by the seed.
fn random_matrix(seed: u64, rows: usize, cols: usize) -> Matrix {
    let mut stream = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..rows * cols).map(|_| stream.random::<f32>() * 2.0 - 1.0).collect();
    Matrix::new(rows, cols, values).unwrap()
}

/// A random update of rank `rank`, from `input` to `output`.
fn random_update(seed: u64, rank: usize, input: usize, output: usize, scale: f64) -> LowRank {
    let (a, b) = (random_matrix(2 * seed, rank, input), random_matrix(2 * seed + 1, output, rank));
    LowRank::new(a, b, scale).unwrap()
}

/// The modules of an adapter, as those of a base that has no others.
fn own_modules(adapter: &Adapter) -> Vec<BaseModule> {
    let module = |(path, update): (&String, &LowRank)| BaseModule {
        path: path.clone(),
        input: update.input(),
        output: update.output(),
        kind: ModuleKind::Linear,
    };
    adapter.modules().iter().map(module).collect()
}

/// An adapter with q and v projections in two layers, of rank 2 at scale 2; its base has no other modules.
fn small_adapter(seed: u64) -> Adapter {
    let mut modules = BTreeMap::new();
    for layer in 0..2 {
        for (place, name, output) in [(0, "q_proj", 6), (1, "v_proj", 4)] {
            let path = format!("model.layers.{layer}.self_attn.{name}");
            modules.insert(path, random_update(10 * seed + 2 * layer + place, 2, 6, output, 2.0));
        }
    }
    let adapter = Adapter::new(modules);
    let base = own_modules(&adapter);
    adapter.with_target_names(&base)
}

/// The inner product of two dense updates.
fn dense_dot(x: &[f32], y: &[f32]) -> f64 {
    x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

/// The largest difference between two updates of one shape; a NaN is larger than any number.
fn difference(x: &LowRank, y: &LowRank) -> f32 {
    assert_eq!((x.input(), x.output()), (y.input(), y.output()));
    x.delta().iter().zip(y.delta()).map(|(x, y)| (x - y).abs()).max_by(f32::total_cmp).unwrap()
}

/// Whether `value` is `expected` within `tolerance`, relative to the larger of 1 and `expected`.
#[track_caller]
fn assert_close(value: f64, expected: f64, tolerance: f64) {
    assert!((value - expected).abs() <= tolerance * expected.abs().max(1.0), "found {value}, expected {expected}");
}
