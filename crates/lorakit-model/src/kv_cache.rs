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

    /// The same with room for `more` tokens after its own.
    pub(crate) fn extended(&self, more: usize) -> Result<Self> {
        let extend = |own: &Tensor| {
            let room = Tensor::zeros((more, own.dim(1)?), own.dtype(), own.device())?;
            Tensor::cat(&[own, &room], 0)
        };
        let all = |own: &[Tensor]| own.iter().map(extend).collect::<Result<Vec<_>>>();
        Ok(Self { keys: all(&self.keys)?, values: all(&self.values)? })
    }
}
