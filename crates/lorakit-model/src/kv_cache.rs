//! The cached keys and values of decoding.

use crate::attention::heads::AttentionHeads;
use candle_core::{DType, Device, Result, Tensor};

/// Keys and values of tokens that were seen before, for every layer: `[slots, keys * features]` each.
#[derive(Clone)]
pub(crate) struct KvCache {
    pub(crate) keys: Vec<Tensor>,
    pub(crate) values: Vec<Tensor>,
}

impl KvCache {
    /// An empty cache of `slots` tokens.
    pub(crate) fn new(layers: usize, slots: usize, heads: AttentionHeads, device: &Device) -> Result<Self> {
        let empty = || -> Result<Vec<Tensor>> {
            (0..layers).map(|_| Tensor::zeros((slots, heads.key_width()), DType::F32, device)).collect()
        };
        Ok(Self { keys: empty()?, values: empty()? })
    }
}
