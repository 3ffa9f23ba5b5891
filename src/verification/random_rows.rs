//! Rows of random tokens, on which logits are compared.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use lorakit_format::rng::Key;
use lorakit_lora::{Patches, SequenceBatch};
use lorakit_model::Base;

/// Maximum length of a row.
const LONGEST: usize = 64;

/// Rows of random tokens.
pub struct RandomRows {
    ids: Vec<u32>,
    /// The lengths of the rows.
    lengths: Vec<usize>,
}

impl RandomRows {
    /// Rows of `tokens` tokens together, drawn from the vocabulary of `base`.
    pub fn new(base: &Base, tokens: usize, seed: u64) -> Self {
        let longest = LONGEST.min(base.config().max_positions);
        let mut stream = Key::new(seed, "verify").stream();
        let ids = (0..tokens).map(|_| stream.below(base.config().vocabulary) as u32).collect::<Vec<_>>();
        let lengths = ids.chunks(longest).map(<[u32]>::len).collect();
        Self { ids, lengths }
    }

    /// Number of tokens in all rows.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The logits of every token, `[tokens, vocabulary]`, in f32 on the CPU.
    pub fn logits(&self, base: &Base, patches: &Patches) -> Result<Tensor> {
        let logits = base.logits(&self.ids, SequenceBatch::packed(self.lengths.iter().copied()), patches)?;
        Ok(logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
    }
}
