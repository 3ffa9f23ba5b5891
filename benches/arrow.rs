//! What Arrow costs over its base: prefill of 256 tokens and decoding, by the size of the library.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod phi_slice;

use criterion::{Criterion, criterion_group, criterion_main};
use lorakit_adapter::{Patches, Row};
use lorakit_model::{Base, Decoding, Options};
use phi_slice::Noise;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PREFILL: usize = 256;

/// Tokens that a decoded row holds before it is begun anew.
const DECODED: usize = 96;

fn prefill(criterion: &mut Criterion) {
    phi_slice::one_candle_thread();
    let base = phi_slice::base(2, 512, &Options::default());
    let ids = Noise::new(7).tokens(PREFILL, 512);
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for (name, patches) in variants(&base, &[10, 64, 256]) {
        group.bench_function(name, |b| b.iter(|| phi_slice::prefill(&base, &ids, &patches)));
    }
    group.finish();
}

fn decoding(criterion: &mut Criterion) {
    let base = phi_slice::base(2, 512, &Options::default());
    let ids = Noise::new(7).tokens(PREFILL, 512);
    let mut group = criterion.benchmark_group("decoding");
    for (name, patches) in variants(&base, &[256]) {
        let begun = || {
            let mut decoding = Decoding::new(&base, &patches, DECODED).unwrap();
            let row = decoding.open(DECODED, Row::default()).unwrap();
            decoding.feed(&[(row, &ids[..DECODED / 2])]).unwrap();
            (decoding, row)
        };
        let (mut decoding, mut row) = begun();
        group.bench_function(name, |b| {
            b.iter(|| {
                if decoding.len(row) == DECODED {
                    (decoding, row) = begun();
                }
                decoding.feed(&[(row, &ids[..1])]).unwrap()
            });
        });
    }
    group.finish();
}

/// The base alone, one of its experts, and Arrow over libraries of several sizes.
fn variants(base: &Base, sizes: &[usize]) -> Vec<(String, Patches)> {
    let one = phi_slice::patches("expert:e000", &phi_slice::experts(base, 1));
    let arrow =
        |&size: &usize| (format!("arrow over {size}"), phi_slice::patches("arrow", &phi_slice::experts(base, size)));
    [("base".to_owned(), Patches::none()), ("one expert".to_owned(), one)]
        .into_iter()
        .chain(sizes.iter().map(arrow))
        .collect()
}

criterion_group!(benches, prefill, decoding);
criterion_main!(benches);
