//! Products of one token and of some, with weights of every storage type: few are bound by the memory that they are read
//! from.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};
use lorakit_format::mmap::FileBytes;
use lorakit_model::weights::{BlockType, MmapMatrix, StorageDtype, TokenPrecision, forward_side_by_side};

const COLUMNS: usize = 2048;

/// Bytes of a matrix: more than caches hold.
const BYTES: usize = 64 << 20;

fn quantized(block_type: BlockType) -> MmapMatrix {
    let row = COLUMNS / block_type.block_values() * block_type.block_bytes();
    let rows = BYTES / row;
    // A byte of one half of a scale makes no difference to the time, as long as no scale is infinite.
    let bytes: Vec<u8> =
        (0..rows * row).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] & 0x3f).collect();
    let length = bytes.len();
    MmapMatrix::of_blocks(FileBytes::Owned(bytes.into()), 0..length, block_type, rows, COLUMNS).unwrap()
}

fn plain(dtype: StorageDtype) -> MmapMatrix {
    let rows = BYTES / dtype.size() / COLUMNS;
    let values = (0..rows * COLUMNS).map(|i| (i % 17) as f32 - 8.0).collect();
    MmapMatrix::from_values(values, rows, COLUMNS).unwrap().rounded_to(dtype).unwrap()
}

/// The product with `tokens` tokens, in bytes of weights per second.
fn product(
    group: &mut BenchmarkGroup<WallTime>,
    name: &str,
    matrix: &MmapMatrix,
    tokens: usize,
    precision: TokenPrecision,
) {
    let x: Vec<f32> = (0..tokens * COLUMNS).map(|i| (i % 13) as f32 - 6.0).collect();
    let mut y = vec![0.0; tokens * matrix.rows()];
    group.throughput(Throughput::Bytes(BYTES as u64));
    group.bench_function(BenchmarkId::new(name, tokens), |bench| {
        bench.iter(|| forward_side_by_side(&[matrix], &x, &mut y, precision));
    });
}

fn decoding_product(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decoding product");
    group.sample_size(20);
    for dtype in [StorageDtype::F32, StorageDtype::BF16, StorageDtype::F16] {
        let matrix = plain(dtype);
        for tokens in [1, 3, 8, 9, 32] {
            product(&mut group, &format!("{dtype:?}"), &matrix, tokens, TokenPrecision::Exact);
        }
    }
    for block_type in BlockType::ALL {
        let matrix = quantized(block_type);
        for tokens in [1, 8] {
            product(&mut group, block_type.name(), &matrix, tokens, TokenPrecision::EightBit);
        }
        product(&mut group, &format!("{} exact", block_type.name()), &matrix, 1, TokenPrecision::Exact);
    }
    group.finish();
}

criterion_group!(benches, decoding_product);
criterion_main!(benches);
