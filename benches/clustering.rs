//! MBC of Phi-2-sized adapters (1,966,080 parameters each), read from files in the page cache.
//!
//! `MBC_ADAPTERS` sets the number of adapters; each takes 8 MB of disk while the bench runs. With more than 1,000, only
//! parameters are clustered, and only once, which takes a minute or more.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

mod phi_slice;

use criterion::{Criterion, criterion_group, criterion_main};
use lorakit_adapter::{Adapter, Library, LowRank, Matrix};
use lorakit_cluster::{ComparisonSpace, ExpertSet, MbcOptions, adjusted_rand, mbc};
use phi_slice::Noise;
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const WIDTH: usize = 2560;
const RANK: usize = 4;
const LAYERS: usize = 24;
const FAMILIES: usize = 10;
/// Above this number, adapters are clustered only once.
const LARGE: usize = 1000;

/// An adapter near the center of its family, with the same spread as in the scikit-learn script.
fn adapter(index: usize) -> Adapter {
    let (mut center, mut own) = (Noise::new((index % FAMILIES) as u64), Noise::new(1000 + index as u64));
    let mut matrix = |rows: usize, columns: usize| {
        let values = (0..rows * columns).map(|_| center.value() + 2.0 * own.value()).collect();
        Matrix::new(rows, columns, values).unwrap()
    };
    let mut pair = || LowRank::new(matrix(RANK, WIDTH), matrix(WIDTH, RANK), 4.0).unwrap();
    let modules = (0..LAYERS).flat_map(|layer| {
        ["q_proj", "k_proj", "v_proj", "dense"].map(|name| format!("model.layers.{layer}.self_attn.{name}"))
    });
    Adapter::new(modules.map(|module| (module, pair())).collect())
}

fn clustering(criterion: &mut Criterion) {
    let count = std::env::var("MBC_ADAPTERS").map_or(32, |count| count.parse().unwrap());
    let root = phi_slice::empty_folder("library-to-cluster");
    let library = Library::open_or_create(&root, None).unwrap();
    for index in 0..count {
        library.add(&format!("e{index:04}"), &adapter(index), None).unwrap();
    }
    let experts = || {
        let open = |name: &str| library.adapter(name);
        ExpertSet::new(library.expert_names().unwrap(), open).unwrap()
    };
    let mut group = criterion.benchmark_group("mbc");
    group.sample_size(10);
    let large = count > LARGE;
    for space in [ComparisonSpace::Parameters, ComparisonSpace::Delta].into_iter().take(if large { 1 } else { 2 }) {
        let options = MbcOptions { space, ..MbcOptions::default() };
        let planted: Vec<usize> = (0..count).map(|index| index % FAMILIES).collect();
        let start = Instant::now();
        let found = mbc(&experts(), &options).unwrap();
        let (time, index) = (start.elapsed(), adjusted_rand(found.labels(), &planted).unwrap());
        println!("{space}: {count} adapters once in {time:.1?}, adjusted Rand index {index:.3}");
        if large {
            continue;
        }
        group.bench_function(format!("{count} adapters by {space}"), |b| b.iter(|| mbc(&experts(), &options).unwrap()));
    }
    group.finish();
    std::fs::remove_dir_all(&root).unwrap();
}

criterion_group!(benches, clustering);
criterion_main!(benches);
