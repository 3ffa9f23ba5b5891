//! Opening a library of 256 experts, preparing a router over it, and opening a base.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod phi_slice;

use criterion::{Criterion, criterion_group, criterion_main};
use lorakit_adapter::Library;
use lorakit_model::{Base, BaseOptions};
use lorakit_route::{Expert, LibraryStack};
use phi_slice::Noise;
use std::path::Path;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXPERTS: usize = 256;

fn experts(root: &Path, base: &Base) -> LibraryStack {
    let library = Library::open(root).unwrap();
    let names = library.expert_names().unwrap();
    let experts = names.iter().map(|name| Expert::new(name.clone(), library.adapter(name).unwrap()));
    LibraryStack::new(experts.collect::<Vec<_>>(), &base.adaptable_sites(), base.device()).unwrap()
}

fn opening(criterion: &mut Criterion) {
    phi_slice::one_candle_thread();
    let options = BaseOptions::default();
    let base = phi_slice::base(2, 512, &options);
    let root = phi_slice::empty_folder("library-of-256");
    let library = Library::open_or_create(&root, None).unwrap();
    for index in 0..EXPERTS {
        let adapter = phi_slice::adapter(&base, &mut Noise::new(index as u64 + 1));
        library.add(&format!("e{index:03}"), &adapter, None).unwrap();
    }
    let opened = experts(&root, &base);
    let mut group = criterion.benchmark_group("opening");
    group.sample_size(10);
    group.bench_function("base", |b| b.iter(|| phi_slice::base(2, 512, &options)));
    group.bench_function("library of 256", |b| b.iter(|| experts(&root, &base)));
    group.bench_function("prototypes of 256", |b| b.iter(|| phi_slice::patches("arrow", &opened)));
    group.finish();
    std::fs::remove_dir_all(&root).unwrap();
}

criterion_group!(benches, opening);
criterion_main!(benches);
