//! Arrow's overhead over its base, by library size: prefill of 256 tokens, and decoding of 1 or 32 rows. `phi_slice`
//! describes the environment variables that select the device and the base.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod phi_slice;

use candle_core::DType;
use criterion::{Criterion, criterion_group, criterion_main};
use lorakit_lora::{Patches, Sequence};
use lorakit_model::{Base, CachedDecoder, TokenPrecision};
use phi_slice::Noise;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Length at which a decoded row is restarted.
const DECODED: usize = 96;

/// f32 on a CPU, and the fastest matrix dtype on a GPU.
fn subject() -> Base {
    phi_slice::subject(512, if phi_slice::device().is_cpu() { DType::F32 } else { DType::BF16 })
}

fn prefill(criterion: &mut Criterion) {
    phi_slice::one_candle_thread();
    let base = subject();
    let ids = Noise::new(7).tokens(phi_slice::set("BENCH_TOKENS", 256), 512);
    let mut group = criterion.benchmark_group("prefill");
    group.sample_size(10);
    for (name, patches) in variants(&base, &[10, 64, 256]) {
        group.bench_function(name, |b| b.iter(|| phi_slice::prefill(&base, &ids, &patches)));
    }
    group.finish();
}

fn decoding(criterion: &mut Criterion) {
    let base = subject();
    let mut group = criterion.benchmark_group("decoding");
    for (name, patches) in variants(&base, &[256]) {
        for rows in [1, 32] {
            let name = if rows == 1 { name.clone() } else { format!("{name}, {rows} rows") };
            let mut decoded = Decoded::begun(&base, &patches, rows);
            group.bench_function(name, |b| b.iter(|| decoded.step(&base, &patches)));
        }
    }
    group.finish();
}

/// A batch of rows that are being decoded.
struct Decoded<'a> {
    decoding: CachedDecoder<'a>,
    rows: Vec<usize>,
}

impl<'a> Decoded<'a> {
    /// Starts `rows` rows at half their maximum length.
    fn begun(base: &'a Base, patches: &'a Patches, rows: usize) -> Self {
        let ids = Noise::new(7).tokens(DECODED / 2, 512);
        let mut decoding = CachedDecoder::new(base, patches, rows * DECODED).unwrap();
        let rows: Vec<usize> = (0..rows).map(|_| decoding.open(DECODED, Sequence::default()).unwrap()).collect();
        let fed: Vec<(usize, &[u32])> = rows.iter().map(|&row| (row, &ids[..])).collect();
        decoding.forward(&fed, TokenPrecision::Exact).unwrap();
        Self { decoding, rows }
    }

    /// Decodes one token of every row, and waits for the device.
    fn step(&mut self, base: &'a Base, patches: &'a Patches) {
        if self.decoding.tokens_in(self.rows[0]) == DECODED {
            *self = Self::begun(base, patches, self.rows.len());
        }
        let fed: Vec<(usize, &[u32])> = self.rows.iter().map(|&row| (row, &[7][..])).collect();
        self.decoding.forward(&fed, TokenPrecision::Exact).unwrap();
        base.device().synchronize().unwrap();
    }
}

/// The base alone, a single expert, and Arrow over libraries of several sizes.
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
