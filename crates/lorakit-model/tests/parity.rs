//! The bases against transformers: logits of small random models of every form, and a real model's greedy text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use candle_core::{DType, Device, Tensor, safetensors};
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use lorakit_model::sample::greedy;
use lorakit_model::{Base, Decoding, Options};
use std::path::PathBuf;

const BASES: [&str; 4] = ["mistral", "phi", "window", "llama3"];

fn shared(path: &str) -> Option<PathBuf> {
    let found = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if !found.exists() {
        eprintln!("skipped: no ../shared");
        return None;
    }
    Some(found)
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
}

/// What transformers made of one small random base.
struct Oracle {
    base: PathBuf,
    /// The tokens, row by row.
    ids: Vec<Vec<u32>>,
    /// The logits of the base, `[rows, tokens, vocabulary]`.
    logits: Tensor,
}

fn oracle(name: &str) -> Option<Oracle> {
    let folder = shared(&format!("oracles/peft/{name}"))?;
    let mut tensors = safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
    let ids = tensors["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
    Some(Oracle { base: folder.join("base"), ids, logits: tensors.remove("base").unwrap() })
}

#[test]
fn logits_of_every_form_equal_those_of_transformers() {
    for name in BASES {
        let Some(Oracle { base: folder, ids, logits: expected }) = oracle(name) else { return };
        let base = Base::open(&folder, &Options::default()).unwrap();
        let expected = expected.flatten(0, 1).unwrap();
        let logits =
            base.logits(&ids.concat(), SequenceBatch::packed(ids.iter().map(Vec::len)), &Patches::none()).unwrap();
        let difference = largest_difference(&logits, &expected);
        assert!(difference < 1e-4, "{name}: {difference}");

        let trained = Base::open(&folder, &Options { trainable: true, ..Options::default() }).unwrap();
        let logits =
            trained.logits(&ids.concat(), SequenceBatch::packed(ids.iter().map(Vec::len)), &Patches::none()).unwrap();
        let difference = largest_difference(&logits, &expected);
        assert!(difference < 1e-4, "{name}, trainable: {difference}");
    }
}

#[test]
fn packed_rows_equal_rows_alone() {
    for name in BASES {
        let Some(Oracle { base: folder, ids, .. }) = oracle(name) else { return };
        let base = Base::open(&folder, &Options::default()).unwrap();
        let lengths = [24, 7, 15];
        let rows: Vec<&[u32]> = ids.iter().zip(lengths).map(|(row, n)| &row[..n]).collect();
        let together = base.logits(&rows.concat(), SequenceBatch::packed(lengths), &Patches::none()).unwrap();
        let alone: Vec<Tensor> = rows
            .iter()
            .map(|row| base.logits(row, SequenceBatch::packed([row.len()]), &Patches::none()).unwrap())
            .collect();
        let difference = largest_difference(&together, &Tensor::cat(&alone, 0).unwrap());
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn cached_decoding_equals_uncached_and_branches_share_their_prefix() {
    for name in BASES {
        let Some(Oracle { base: folder, ids, .. }) = oracle(name) else { return };
        let base = Base::open(&folder, &Options::default()).unwrap();
        let none = Patches::none();
        let whole = base.logits(&ids[0], SequenceBatch::packed([24]), &none).unwrap();
        let mut decoding = Decoding::new(&base, &none, 24 + 24 + 10).unwrap();
        let (row, other) =
            (decoding.open(24, Sequence::default()).unwrap(), decoding.open(24, Sequence::default()).unwrap());
        let mut seen = vec![
            decoding.next_logits(&[(other, &ids[1][..9]), (row, &ids[0][..11])]).unwrap().narrow(0, 1, 1).unwrap(),
        ];
        for t in 11..14 {
            seen.push(decoding.next_logits(&[(row, &ids[0][t..t + 1])]).unwrap());
        }
        let branch = decoding.branch(row, 10).unwrap();
        seen.push(decoding.next_logits(&[(branch, &ids[0][14..24])]).unwrap());
        let expected = whole.index_select(&Tensor::new(&[10u32, 11, 12, 13, 23], &Device::Cpu).unwrap(), 0).unwrap();
        let difference = largest_difference(&Tensor::cat(&seen, 0).unwrap(), &expected);
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn a_real_model_continues_as_it_is_known_to() {
    let Some(folder) = shared("data/models/stories260K-hf") else { return };
    let base = Base::open(&folder, &Options::default()).unwrap();
    let none = Patches::none();
    let mut decoding = Decoding::new(&base, &none, 64).unwrap();
    let row = decoding.open(64, Sequence::default()).unwrap();
    let mut token = 1;
    let mut text = Vec::new();
    for step in 0..20 {
        let logits: Vec<f32> = decoding.next_logits(&[(row, &[token])]).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
        if step == 0 {
            for (found, known) in
                logits.iter().zip([-6.22291, 8.40434, -6.22374, -6.22254, -6.22195, -6.22288, -6.22188, -6.22342])
            {
                assert!((found - known).abs() < 1e-4, "{found} {known}");
            }
        }
        token = greedy(&logits);
        text.push(token);
    }
    assert_eq!(
        text,
        [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401, 396, 267, 337]
    );
}

/// Libraries made for these bases hold these fingerprints.
#[test]
#[ignore = "needs ../shared"]
fn fingerprints_never_change() {
    let known = [
        "e543449fb207f7a9d388e8cf5c16df0539f4d5c701c508a33c6d3dc17835bc4e",
        "99ba8951ffe6752d5b62d5460765accb250ff0d0f88a83e0a33d12beeab930af",
        "99176e1e8ce037a48d1022a03f47374988a82fcb20de231079853d4181af7614",
        "2b68113be97374e39850056099ab5c76cad81b5b411ce2c43fbc0d5e7c17438c",
    ];
    for (name, known) in BASES.into_iter().zip(known) {
        let folder = shared(&format!("oracles/peft/{name}/base")).expect("../shared is there");
        let base = Base::open(&folder, &Options::default()).unwrap();
        assert_eq!(base.identity().fingerprint, known, "{name}");
    }
}
