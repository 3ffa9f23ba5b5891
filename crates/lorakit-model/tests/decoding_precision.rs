//! Decoding over quantised weights with tokens rounded to 8 bits: close to exact, only where it was asked for, and up to 8
//! rows the same to the last bit whatever is decoded beside them.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/gguf_converter/mod.rs"]
mod gguf_converter;

use gguf_converter::{GgufModel, Types};
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use lorakit_model::{Base, BaseOptions, CachedDecoder, TokenPrecision};
use std::path::{Path, PathBuf};

fn open(file: &Path, decoding: TokenPrecision) -> Base {
    Base::open_gguf(file, &BaseOptions { decoding, ..BaseOptions::default() }).unwrap()
}

const PROMPT: [u32; 4] = [1, 7, 3, 9];
const DECODED: [u32; 3] = [4, 11, 6];

/// The logits after the prompt and after each of [`DECODED`], in each of `count` equal sequences.
fn decoded(base: &Base, count: usize) -> Vec<Vec<Vec<f32>>> {
    let patches = Patches::none();
    let mut decoder = CachedDecoder::new(base, &patches, 16 * count).unwrap();
    let rows: Vec<usize> = (0..count).map(|_| decoder.open(16, Sequence::default()).unwrap()).collect();
    let mut next = |fed: &[(usize, &[u32])]| -> Vec<Vec<f32>> { decoder.next_logits(fed).unwrap().to_vec2().unwrap() };
    // Each prompt alone: the tokens of many are summed in another order.
    let mut steps: Vec<Vec<Vec<f32>>> = vec![rows.iter().flat_map(|&row| next(&[(row, &PROMPT[..])])).collect()];
    for token in &DECODED {
        let fed: Vec<(usize, &[u32])> = rows.iter().map(|&row| (row, std::slice::from_ref(token))).collect();
        steps.push(next(&fed));
    }
    steps
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Compares both precisions over one file.
fn check(file: &Path) {
    let name = file.display();
    let (exact, rounded) = (open(file, TokenPrecision::Exact), open(file, TokenPrecision::EightBit));
    let all: Vec<u32> = PROMPT.into_iter().chain(DECODED).collect();
    let scored = |base: &Base| -> Vec<Vec<f32>> {
        base.logits(&all, SequenceBatch::packed([all.len()]), &Patches::none()).unwrap().to_vec2().unwrap()
    };
    let expected = scored(&exact);
    assert_eq!(scored(&rounded), expected, "{name}: texts are scored exactly");
    let (one, alone, among) = (decoded(&exact, 1), decoded(&rounded, 1), decoded(&rounded, 8));
    let size = expected.iter().flatten().fold(0.0, |a: f32, b| a.max(b.abs()));
    let mut moved = 0.0f32;
    for (step, expected) in expected[PROMPT.len() - 1..].iter().enumerate() {
        assert!(largest_difference(&one[step][0], expected) <= 1e-4 * size, "{name}: exact step {step}");
        let difference = largest_difference(&alone[step][0], expected);
        assert!(difference <= 0.1 * size, "{name}: step {step} is {difference} off, of {size}");
        assert!(step > 0 || difference <= 1e-4 * size, "{name}: the prompt is computed exactly");
        moved = moved.max(difference);
        for row in &among[step] {
            assert!(*row == alone[step][0], "{name}: step {step} depends on other rows");
        }
    }
    assert!(moved > 1e-5 * size, "{name}: tokens were not rounded");
}

#[test]
fn decoding_with_rounded_tokens_is_close_to_exact_and_does_not_depend_on_other_rows() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.gguf");
    let base = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft/llama/base");
    GgufModel::of_folder(&base, Types::Quantized).write(&file);
    check(&file);
}

#[test]
#[ignore = "needs ../shared"]
fn decoding_over_every_block_type_is_close_to_exact() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/gguf");
    for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "Q4_K_qwen2"] {
        check(&folder.join(name).with_extension("gguf"));
    }
}
