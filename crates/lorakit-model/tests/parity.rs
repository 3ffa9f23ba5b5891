//! Bases compared with transformers: logits of small random models of every architecture, and a real model's greedy
//! text.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;

use candle_core::{DType, Device, Tensor, safetensors};
use differences::largest_difference;
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use lorakit_model::sampling::greedy;
use lorakit_model::{Base, BaseOptions, CachedDecoder};
use std::path::{Path, PathBuf};

/// The bases of `tests/fixtures`, and those of ../shared.
const FIXTURES: [&str; 6] = ["mistral", "phi", "llama", "gemma3", "phi3", "olmo2"];
const SMALL: [&str; 8] = ["qwen2", "qwen3", "gemma2", "granite", "smollm3", "olmo3", "mistral3", "granite4"];
const SHARED: [&str; 4] = ["mistral", "phi", "window", "llama3"];
const NEWER: [&str; 11] =
    ["qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phi3long", "olmo2", "granite", "smollm3", "yarn", "biased"];

fn fixtures(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/peft").join(name)
}

fn shared(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path)
}

/// Results of transformers for one small random base.
struct Oracle {
    name: String,
    base: PathBuf,
    /// The tokens, row by row.
    ids: Vec<Vec<u32>>,
    /// The logits of the base, `[rows * tokens, vocabulary]`.
    logits: Tensor,
}

impl Oracle {
    fn read(folder: &Path) -> Self {
        let mut tensors = safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let ids = tensors["input_ids"].to_dtype(DType::U32).unwrap().to_vec2().unwrap();
        let logits = tensors.remove("base").unwrap().flatten(0, 1).unwrap();
        Self { name: folder.display().to_string(), base: folder.join("base"), ids, logits }
    }

    fn open(&self) -> Base {
        Base::open(&self.base, &BaseOptions::default()).unwrap()
    }

    /// As it is, and rounded to bf16.
    fn open_both(&self) -> [Base; 2] {
        let rounded = BaseOptions { dtype: Some(DType::BF16), ..BaseOptions::default() };
        [self.open(), Base::open(&self.base, &rounded).unwrap()]
    }

    fn assert_close(&self, what: &str, found: &Tensor, expected: &Tensor) {
        let difference = largest_difference(found, expected);
        assert!(difference < 1e-4, "{}, {what}: {difference}", self.name);
    }

    fn logits_equal_those_of_transformers(&self) {
        let batch = || SequenceBatch::packed(self.ids.iter().map(Vec::len));
        let logits = self.open().logits(&self.ids.concat(), batch(), &Patches::none()).unwrap();
        self.assert_close("logits", &logits, &self.logits);
        let options = BaseOptions { trainable: true, ..BaseOptions::default() };
        let trainable = Base::open(&self.base, &options).unwrap();
        let logits = trainable.logits(&self.ids.concat(), batch(), &Patches::none()).unwrap();
        self.assert_close("logits of the trainable base", &logits, &self.logits);
    }

    fn packed_sequences_equal_single_ones(&self, base: &Base) {
        let longest = self.ids[0].len();
        let lengths = [longest, 7, longest / 2];
        let rows: Vec<&[u32]> = self.ids.iter().cycle().zip(lengths).map(|(row, n)| &row[..n]).collect();
        let together = base.logits(&rows.concat(), SequenceBatch::packed(lengths), &Patches::none()).unwrap();
        let alone = rows.iter().map(|row| base.logits(row, SequenceBatch::packed([row.len()]), &Patches::none()));
        let alone: Vec<Tensor> = alone.map(Result::unwrap).collect();
        self.assert_close("packed", &together, &Tensor::cat(&alone, 0).unwrap());
    }

    /// Two sequences are decoded together, and a third branches off the first. Expected are the logits of the tokens so far
    /// alone: some bases rotate all tokens of a row by its length.
    fn cached_decoding_equals_uncached(&self, base: &Base) {
        let (none, length) = (Patches::none(), self.ids[0].len());
        let mut decoder = CachedDecoder::new(base, &none, 3 * length).unwrap();
        let first = decoder.open(length, Sequence::default()).unwrap();
        let other = decoder.open(length, Sequence::default()).unwrap();
        let appended: [(usize, &[u32]); 2] = [(other, &self.ids[1][..5]), (first, &self.ids[0][..7])];
        let mut seen = vec![decoder.next_logits(&appended).unwrap().narrow(0, 1, 1).unwrap()];
        for t in 7..9 {
            seen.push(decoder.next_logits(&[(first, &self.ids[0][t..t + 1])]).unwrap());
        }
        let branch = decoder.branch(first, length - 9).unwrap();
        seen.push(decoder.next_logits(&[(branch, &self.ids[0][9..])]).unwrap());
        let last_of = |n: usize| {
            let logits = base.logits(&self.ids[0][..n], SequenceBatch::packed([n]), &none).unwrap();
            logits.narrow(0, n - 1, 1).unwrap()
        };
        let expected: Vec<Tensor> = [7, 8, 9, length].into_iter().map(last_of).collect();
        self.assert_close("cached", &Tensor::cat(&seen, 0).unwrap(), &Tensor::cat(&expected, 0).unwrap());
    }

    /// Token by token: after each, the logits are those of the tokens so far.
    fn cached_decoding_crosses_the_length_of_the_pretraining(&self, base: &Base) {
        let (none, ids) = (Patches::none(), &self.ids[1]);
        let mut decoder = CachedDecoder::new(base, &none, ids.len()).unwrap();
        let row = decoder.open(ids.len(), Sequence::default()).unwrap();
        for n in 1..=ids.len() {
            let cached = decoder.next_logits(&[(row, &ids[n - 1..n])]).unwrap();
            let whole = base.logits(&ids[..n], SequenceBatch::packed([n]), &none).unwrap();
            self.assert_close(&format!("{n} tokens"), &cached, &whole.narrow(0, n - 1, 1).unwrap());
        }
    }

    fn check(&self) {
        self.logits_equal_those_of_transformers();
        for base in self.open_both() {
            self.packed_sequences_equal_single_ones(&base);
            self.cached_decoding_equals_uncached(&base);
            self.cached_decoding_crosses_the_length_of_the_pretraining(&base);
        }
    }
}

#[test]
fn small_bases_equal_transformers_packed_and_cached() {
    FIXTURES.into_iter().chain(SMALL).for_each(|name| Oracle::read(&fixtures(name)).check());
}

#[test]
#[ignore = "needs ../shared"]
fn bases_with_a_window_and_long_rows_equal_transformers_packed_and_cached() {
    SHARED.into_iter().for_each(|name| Oracle::read(&shared("oracles/peft").join(name)).check());
}

#[test]
#[ignore = "needs ../shared"]
fn newer_bases_equal_transformers_packed_and_cached() {
    // Those of another seed of `peft_oracle.py`, if there are some.
    let other = std::env::var("LORAKIT_ORACLES").map(PathBuf::from);
    let folder = other.unwrap_or_else(|_| shared("oracles/peft_modern"));
    NEWER.into_iter().for_each(|name| Oracle::read(&folder.join(name)).check());
}

#[test]
#[ignore = "needs ../shared"]
fn a_real_model_generates_its_known_text() {
    let base = Base::open(&shared("data/models/stories260K-hf"), &BaseOptions::default()).unwrap();
    let none = Patches::none();
    let mut decoder = CachedDecoder::new(&base, &none, 64).unwrap();
    let row = decoder.open(64, Sequence::default()).unwrap();
    let mut token = 1;
    let mut text = Vec::new();
    for step in 0..20 {
        let logits: Vec<f32> = decoder.next_logits(&[(row, &[token])]).unwrap().squeeze(0).unwrap().to_vec1().unwrap();
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

fn assert_fingerprints(folders: impl IntoIterator<Item = PathBuf>, known: &[&str]) {
    let folders: Vec<PathBuf> = folders.into_iter().collect();
    assert_eq!(folders.len(), known.len());
    for (folder, known) in folders.into_iter().zip(known) {
        let base = Base::open(&folder.join("base"), &BaseOptions::default()).unwrap();
        assert_eq!(base.identity().fingerprint, *known, "{}", folder.display());
    }
}

/// Libraries hold the fingerprints of their bases.
#[test]
fn fingerprints_never_change() {
    let known = [
        "e6bad90983c9b0a8a7bb758d2c3d72db83aa989b5f35cff982247121f6aa78dd",
        "dd51684766f0a43225b9e50b200140b21c67815823fd58c0229fa25e691b8b58",
        "454c6f36544dbeba44f03789aa6439224ff83c571f699319cea33f92d57c7478",
        "322fcecac9a291da3b4ebeae909028f1c6993c5630e5899ba2e0a959b2d674e4",
        "68fbec2fc495662ff20269b3d356e66fe3ecf0257c77e7751056bfb7c304f3ec",
        "306f3d937339f4ae344b5723ce7d607769b0d6d2d2152313953b7409bda17ca4",
        "88b74dc61160be61a10b7269a2f286329187d9daa376faf46ce158a2aafdd5cf",
        "ab0c9e895b2b62fc616c96c6db1b365df1fb411b92a3da94195988bcb4966a80",
        "c4196d4b53fced8fee80fc0d06f98a546b8e0d47f4e7429cf1f8032b2da5f619",
        "59463eb04e7537592c57930227f20f3cbadedd9c137919a4c6498aafac0d2f07",
        "0d89a57cf24f78399ea67fec9b02ceda1b075a6099ba44a2d120c124f3c99260",
        "d09fef6e9b7db0da813f6e3ccca2d0481534fb295c956d442e814378489fbdef",
        "ee08f2d5de2b3e50ba1a2c885a306df2deec4b1ccab0441b40f64093a49f384b",
        "7e184a0d31b7ddf6d72d9406aa607e008811e4930854ae4aa1ca92cdbb67f93c",
    ];
    assert_fingerprints(FIXTURES.into_iter().chain(SMALL).map(fixtures), &known);
}

#[test]
#[ignore = "needs ../shared"]
fn fingerprints_of_reference_bases_never_change() {
    let known = [
        "e543449fb207f7a9d388e8cf5c16df0539f4d5c701c508a33c6d3dc17835bc4e",
        "99ba8951ffe6752d5b62d5460765accb250ff0d0f88a83e0a33d12beeab930af",
        "99176e1e8ce037a48d1022a03f47374988a82fcb20de231079853d4181af7614",
        "2b68113be97374e39850056099ab5c76cad81b5b411ce2c43fbc0d5e7c17438c",
    ];
    assert_fingerprints(SHARED.map(|name| shared("oracles/peft").join(name)), &known);
}
