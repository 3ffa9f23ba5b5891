//! T5 compared with transformers: logits, losses and greedy tokens, packed and alone, cached and uncached.
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/differences/mod.rs"]
mod differences;

use candle_core::{DType, Device, Tensor, safetensors};
use differences::largest_difference;
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use lorakit_model::sampling::greedy;
use lorakit_model::{Base, BaseOptions, CachedDecoder, ScoredRow, TokenPrecision};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// Those of another seed of `t5_oracle.py`, if there are some.
fn oracle(name: &str) -> PathBuf {
    let shared = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/oracles/t5");
    std::env::var("LORAKIT_T5_ORACLES").map_or_else(|_| shared(), PathBuf::from).join(name)
}

/// Results of transformers for one small random T5.
struct Oracle {
    base: PathBuf,
    /// The tokens of each row's source, and of what its decoder reads.
    rows: Vec<(Vec<u32>, Vec<u32>)>,
    /// The labels of each row.
    labels: Vec<Vec<u32>>,
    /// The logits of each row, `[target, vocabulary]`.
    logits: Vec<Tensor>,
    loss: f64,
    greedy: Vec<Vec<u32>>,
}

impl Oracle {
    fn read(folder: &Path) -> Self {
        let tensors = safetensors::load(folder.join("expected.safetensors"), &Device::Cpu).unwrap();
        let of = |name: &str| tensors[name].to_vec2::<i64>().unwrap();
        let (inputs, mask, decoded, labels) =
            (of("input_ids"), of("attention_mask"), of("decoder_input_ids"), of("labels"));
        let ids = |row: &[i64]| row.iter().map(|&id| id as u32).collect::<Vec<_>>();
        let source = |(row, mask): (&Vec<i64>, &Vec<i64>)| ids(&row[..mask.iter().sum::<i64>() as usize]);
        let rows = inputs.iter().zip(&mask).map(source).zip(decoded.iter().map(|row| ids(row))).collect();
        let record: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let labels = labels.iter().map(|row| ids(&row.iter().copied().filter(|&id| id >= 0).collect::<Vec<_>>()));
        let base = &tensors["base"];
        Self {
            base: folder.join("base"),
            rows,
            labels: labels.collect(),
            logits: (0..base.dim(0).unwrap()).map(|row| base.get(row).unwrap()).collect(),
            loss: record["losses"]["base"].as_f64().unwrap(),
            greedy: serde_json::from_value(record["greedy"].clone()).unwrap(),
        }
    }

    fn open(&self, options: &BaseOptions) -> Base {
        Base::open(&self.base, options).unwrap()
    }

    /// The logits of the target tokens of some rows that share a forward, row by row.
    fn logits(&self, base: &Base, rows: &[usize]) -> Vec<Tensor> {
        let (mut ids, mut sequences, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (source, target) in rows.iter().map(|&row| &self.rows[row]) {
            let (start, len) = (ids.len(), source.len() + target.len());
            sequences.push(Sequence { start, len, source: Some(source.len()), ..Sequence::default() });
            places.push((start + source.len(), target.len()));
            ids.extend(source.iter().chain(target));
        }
        let logits = base.logits(&ids, SequenceBatch::new(sequences), &Patches::none()).unwrap();
        places.into_iter().map(|(start, len)| logits.narrow(0, start, len).unwrap()).collect()
    }

    fn logits_equal_those_of_transformers(&self) {
        let bf16 = BaseOptions { dtype: Some(DType::BF16), ..BaseOptions::default() };
        let trainable = BaseOptions { trainable: true, ..BaseOptions::default() };
        for (options, tolerance) in [(BaseOptions::default(), 1e-4), (trainable, 1e-4), (bf16, 0.3)] {
            let base = self.open(&options);
            let together = self.logits(&base, &[0, 1, 2]);
            for (row, found) in together.iter().enumerate() {
                let difference = largest_difference(found, &self.logits[row]);
                assert!(difference < tolerance, "{}, row {row}: {difference}", self.base.display());
                let alone = largest_difference(found, &self.logits(&base, &[row])[0]);
                assert!(alone < 1e-4, "{}, row {row} alone: {alone}", self.base.display());
            }
        }
    }

    /// The mean over target tokens, with rows as prompts that end with the decoder's start token.
    fn losses_equal_those_of_transformers(&self) {
        let base = self.open(&BaseOptions::default());
        let rows: Vec<(Vec<u32>, Vec<bool>)> = self
            .rows
            .iter()
            .zip(&self.labels)
            .map(|((source, read), labels)| {
                let tokens = [source, &read[..1], labels].concat();
                let loss = (0..tokens.len()).map(|at| at > source.len()).collect();
                (tokens, loss)
            })
            .collect();
        let scored = || rows.iter().map(|(tokens, loss)| ScoredRow { tokens, loss, row: Sequence::default() });
        for sums in [
            base.nll_sums(scored(), &Patches::none(), TokenPrecision::Exact).unwrap(),
            base.nll_sums_by_token(scored(), &Patches::none()).unwrap(),
        ] {
            let (sum, tokens) = sums.iter().fold((0.0, 0), |(sum, tokens), row| (sum + row.sum, tokens + row.tokens));
            let loss = sum / tokens as f64;
            assert!((loss / self.loss - 1.0).abs() < 1e-5, "{}: {loss} {}", self.base.display(), self.loss);
        }
    }

    /// All rows are decoded together, each from its source and the start token, until EOS.
    fn greedy_tokens_equal_those_of_transformers(&self) {
        let (base, none) = (self.open(&BaseOptions::default()), Patches::none());
        let mut decoder = CachedDecoder::new(&base, &none, 200).unwrap();
        assert!(!decoder.can_share(2) && decoder.can_share_source(2) && !decoder.can_read_in_parts());
        let start = base.config().decoder_start().unwrap();
        let prompts: Vec<Vec<u32>> = self.rows.iter().map(|(source, _)| [&source[..], &[start]].concat()).collect();
        let sequences: Vec<usize> =
            prompts.iter().map(|prompt| decoder.open(prompt.len() + 16, Sequence::default()).unwrap()).collect();
        let mut texts: Vec<Vec<u32>> = vec![vec![start]; prompts.len()];
        let mut next = prompts.clone();
        for _ in 1..self.greedy[0].len() {
            let appended: Vec<(usize, &[u32])> =
                sequences.iter().copied().zip(next.iter().map(Vec::as_slice)).collect();
            let logits = decoder.next_logits(&appended).unwrap().to_vec2::<f32>().unwrap();
            next = logits.iter().map(|row| vec![greedy(row)]).collect();
            texts.iter_mut().zip(&next).for_each(|(text, next)| text.extend(next));
        }
        for (text, expected) in texts.iter().zip(&self.greedy) {
            // transformers pads what follows EOS.
            let end = expected.iter().position(|&id| id == 1).map_or(expected.len(), |eos| eos + 1);
            assert_eq!(text[..end], expected[..end], "{}", self.base.display());
        }
    }

    /// A source alone, whose targets branch off it, token by token.
    fn cached_decoding_equals_uncached(&self) {
        let (base, none) = (self.open(&BaseOptions::default()), Patches::none());
        let mut decoder = CachedDecoder::new(&base, &none, 200).unwrap();
        for (row, (source, target)) in self.rows.iter().enumerate() {
            let template = Sequence { source: Some(source.len()), ..Sequence::default() };
            let parent = decoder.open(source.len(), template).unwrap();
            decoder.forward(&[(parent, source)], TokenPrecision::Exact).unwrap();
            assert!(decoder.branch_at(parent, source.len() - 1, 4).is_err());
            let [whole, stepwise] = [(); 2].map(|()| decoder.branch(parent, target.len()).unwrap());
            let h = decoder.forward(&[(whole, target)], TokenPrecision::Exact).unwrap();
            let logits = base.lm_head().logits(&h, None).unwrap();
            assert!(largest_difference(&logits, &self.logits[row]) < 1e-4);
            let steps = target.chunks(1).map(|token| decoder.next_logits(&[(stepwise, token)]).unwrap());
            let logits = Tensor::cat(&steps.collect::<Vec<_>>(), 0).unwrap();
            assert!(largest_difference(&logits, &self.logits[row]) < 1e-4);
            [whole, stepwise, parent].into_iter().for_each(|sequence| decoder.close(sequence));
        }
    }

    fn check(&self) {
        self.logits_equal_those_of_transformers();
        self.losses_equal_those_of_transformers();
        self.greedy_tokens_equal_those_of_transformers();
        self.cached_decoding_equals_uncached();
    }
}

#[test]
fn a_small_t5_equals_transformers() {
    Oracle::read(&fixture("t5")).check();
}

#[test]
#[ignore = "needs ../shared"]
fn both_forms_of_t5_equal_transformers() {
    ["flan", "t5"].into_iter().for_each(|name| Oracle::read(&oracle(name)).check());
}

#[test]
fn rows_without_a_source_are_refused() {
    let base = Base::open(&fixture("t5/base"), &BaseOptions::default()).unwrap();
    let row = Sequence { len: 2, source: Some(0), ..Sequence::default() };
    let found = base.logits(&[0, 5], SequenceBatch::new([row]), &Patches::none());
    assert!(found.unwrap_err().to_string().contains("has a target but no source"));
}

#[test]
fn next_logits_of_a_source_alone_are_refused() {
    let (base, none) = (Base::open(&fixture("t5/base"), &BaseOptions::default()).unwrap(), Patches::none());
    let mut decoder = CachedDecoder::new(&base, &none, 30).unwrap();
    // Whether the source's length is said or guessed: 7 is not what the decoder starts with.
    for source in [None, Some(3)] {
        let row = decoder.open(10, Sequence { source, ..Sequence::default() }).unwrap();
        let message = decoder.next_logits(&[(row, &[5, 6, 7])]).unwrap_err().to_string();
        assert!(message.contains("all 3 tokens") && message.contains("the decoder starts with"), "{message}");
    }
    // A start token that differs from that of config.json.
    let row = decoder.open(10, Sequence { source: Some(2), ..Sequence::default() }).unwrap();
    decoder.next_logits(&[(row, &[5, 6, 7])]).unwrap();
}

#[test]
fn sites_are_those_of_both_stacks() {
    let base = Base::open(&fixture("t5/base"), &BaseOptions::default()).unwrap();
    let sites: Vec<&str> = base.sites().iter().map(|site| site.name).collect();
    assert_eq!(sites[..8], ["qkv", "o", "wi", "wo", "qkv", "o", "wi", "wo"]);
    assert_eq!(sites[8..15], ["qkv", "o", "cross_q", "cross_kv", "cross_o", "wi", "wo"]);
    assert_eq!(base.sites()[11].key(), "2.cross_kv");
    let modules: Vec<String> = base.modules().into_iter().map(|module| module.path).collect();
    for path in ["encoder.block.1.layer.1.DenseReluDense.wi_1", "decoder.block.0.layer.1.EncDecAttention.k"] {
        assert!(modules.iter().any(|module| module == path), "{path}");
    }
}
