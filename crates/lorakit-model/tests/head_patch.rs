//! A patch of the head: called once per chunk of target tokens, with the sequences of that chunk.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use candle_core::{DType, Device, Result, Tensor, Var};
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};
use lorakit_model::layer::lm_head::{HeadPatch, LmHead};
use lorakit_model::weights::{MmapMatrix, Weight};
use std::sync::{Arc, Mutex};

/// Large enough that few tokens fit in a chunk.
const VOCABULARY: usize = 1 << 21;
const LENGTHS: [usize; 3] = [3, 1, 5];

/// Adds one to the logit of each sequence's own token, and records the chunks that it is called with.
#[derive(Default)]
struct Bias {
    chunks: Mutex<Vec<Vec<usize>>>,
}

impl Patch for Bias {
    fn add(&self, x: &Tensor, batch: &SequenceBatch, out: &mut Outputs) -> Result<()> {
        assert_eq!((x.dim(0)?, out.tensor().dims2()?), (batch.tokens(), (batch.tokens(), VOCABULARY)));
        self.chunks.lock().unwrap().push(batch.iter().map(|row| row.len).collect());
        let mut delta = vec![0f32; batch.tokens() * VOCABULARY];
        for row in batch.iter() {
            row.tokens().for_each(|token| delta[token * VOCABULARY + row.expert.unwrap()] = 1.0);
        }
        out.add(&Tensor::from_vec(delta, (batch.tokens(), VOCABULARY), x.device())?)
    }
}

/// Sequences whose expert is their index.
fn batch() -> SequenceBatch {
    let named =
        |(index, row): (usize, &lorakit_lora::Sequence)| lorakit_lora::Sequence { expert: Some(index), ..row.clone() };
    SequenceBatch::new(SequenceBatch::packed(LENGTHS).iter().enumerate().map(named))
}

#[test]
fn a_head_patch_adds_to_the_logits_of_each_sequence() {
    let (n, d) = (LENGTHS.iter().sum::<usize>(), 2);
    let w: Vec<f32> = (0..VOCABULARY * d).map(|i| ((i * 7919) % 13) as f32 / 13.0).collect();
    let tensor = Tensor::from_slice(&w, (VOCABULARY, d), &Device::Cpu).unwrap();
    let mapped = Weight::Mapped(MmapMatrix::from_values(w, VOCABULARY, d).unwrap());
    let h = Tensor::arange(0f32, (n * d) as f32, &Device::Cpu).unwrap().reshape((n, d)).unwrap();
    let h = (h * 0.1).unwrap();
    let targets: Vec<u32> = (0..n as u32).map(|i| i % 3).collect();
    for weight in [mapped, Weight::Tensor(tensor)] {
        let head = LmHead::new(weight, None, VOCABULARY);
        let (bias, batch) = (Arc::new(Bias::default()), batch());
        let patches = Patches::none().with_head(bias.clone());
        let nll = head.nll(&h, &targets, HeadPatch::of(&patches, &batch)).unwrap().to_vec1::<f32>().unwrap();
        let logits = head.logits(&h, HeadPatch::of(&patches, &batch)).unwrap();
        let expected = candle_nn::ops::log_softmax(&logits, 1).unwrap();
        for (token, (nll, &target)) in nll.iter().zip(&targets).enumerate() {
            let expected: f32 = expected.get(token).unwrap().get(target as usize).unwrap().to_scalar().unwrap();
            assert!((nll + expected).abs() < 1e-4, "token {token}: {nll} and {expected}");
        }
        let delta = (logits - head.logits(&h, None).unwrap()).unwrap().to_dtype(DType::F32).unwrap();
        for (index, row) in batch.iter().enumerate() {
            let of = delta.get(row.start).unwrap().narrow(0, 0, 4).unwrap().to_vec1::<f32>().unwrap();
            assert!(of.iter().enumerate().all(|(id, d)| (d - f32::from(u8::from(id == index))).abs() < 1e-5), "{of:?}");
        }
        // Four tokens fit a chunk of 2^23 logits; the last call computes the logits.
        let chunks = bias.chunks.lock().unwrap();
        assert_eq!(*chunks, [vec![3, 1], vec![4], vec![1], vec![3, 1, 5]]);
    }
}

#[test]
fn hidden_states_of_another_width_are_an_error() {
    let tensor = Tensor::ones((4, 2), DType::F32, &Device::Cpu).unwrap();
    let mapped = Weight::Mapped(MmapMatrix::from_values(vec![1.0; 8], 4, 2).unwrap());
    let h = Tensor::ones((1, 3), DType::F32, &Device::Cpu).unwrap();
    for weight in [mapped, Weight::Tensor(tensor)] {
        let head = LmHead::new(weight, None, 4);
        assert!(head.logits(&h, None).is_err() && head.nll(&h, &[0], None).is_err());
    }
}

#[test]
fn a_patched_head_is_not_differentiated() {
    let head = LmHead::new(Weight::Tensor(Tensor::ones((4, 2), DType::F32, &Device::Cpu).unwrap()), None, 4);
    let patches = Patches::none().with_head(Arc::new(Bias::default()));
    let h = Var::from_tensor(&Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap()).unwrap();
    let batch = SequenceBatch::packed([1]);
    let error = head.nll(&h, &[0], HeadPatch::of(&patches, &batch)).unwrap_err().to_string();
    assert!(error.contains("not differentiable"), "{error}");
}
