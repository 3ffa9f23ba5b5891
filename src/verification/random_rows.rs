//! Rows of random tokens, on which logits are compared.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use lorakit_format::rng::Key;
use lorakit_lora::{Patches, Sequence, SequenceBatch};
use lorakit_model::Base;

/// Maximum length of a row.
const LONGEST: usize = 64;

/// Rows of random tokens. Of an encoder-decoder the first half of each is the source.
pub struct RandomRows {
    ids: Vec<u32>,
    /// The lengths of the rows.
    lengths: Vec<usize>,
}

impl RandomRows {
    /// Rows of `tokens` tokens together, drawn from the vocabulary of `base`.
    pub fn new(base: &Base, tokens: usize, seed: u64) -> Self {
        let longest = LONGEST.min(base.config().max_positions);
        let tokens = if base.config().encoder.is_some() { tokens.next_multiple_of(2) } else { tokens };
        let mut stream = Key::new(seed, "verify").stream();
        let ids = (0..tokens).map(|_| stream.below(base.config().vocabulary) as u32).collect::<Vec<_>>();
        let lengths = ids.chunks(longest).map(<[u32]>::len).collect();
        Self { ids, lengths }
    }

    /// Number of tokens in all rows.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The logits of every token, `[tokens, vocabulary]`, in f32 on the CPU; without those of sources.
    pub fn logits(&self, base: &Base, patches: &Patches) -> Result<Tensor> {
        let packed = SequenceBatch::packed(self.lengths.iter().copied());
        let source = |len: usize| base.config().encoder.map(|_| len / 2);
        let rows = packed.iter().map(|row| Sequence { source: source(row.len), ..row.clone() });
        let logits = base.logits(&self.ids, SequenceBatch::new(rows), patches)?;
        let logits = logits.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let read = |row: &Sequence| row.start + source(row.len).unwrap_or(0)..row.start + row.len;
        let decoded: Vec<u32> = packed.iter().flat_map(read).map(|token| token as u32).collect();
        if decoded.len() == self.ids.len() {
            return Ok(logits);
        }
        Ok(logits.index_select(&Tensor::new(decoded, &Device::Cpu)?, 0)?)
    }
}
