//! The cached keys and values of decoding.

use crate::attention::heads::AttentionHeads;
use crate::attention::segment::AttentionSegment;
use candle_core::{CpuStorage, DType, Device, InplaceOp2, Layout, Result, Tensor};
use lorakit_lora::kernels::cpu_tensor;

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

    /// Writes the keys, rotated, and the values of a layer: the columns of `rows` from `first_key` on.
    pub(crate) fn write(
        &self,
        layer: usize,
        (rows, first_key): (&Tensor, usize),
        segments: &[AttentionSegment],
    ) -> Result<()> {
        let width = self.keys[layer].dim(1)?;
        for (to, column) in [(&self.keys[layer], first_key), (&self.values[layer], first_key + width)] {
            if rows.device().is_cpu() {
                to.inplace_op2(rows, &WriteSlots { segments, column })?;
                continue;
            }
            let from = rows.narrow(1, column, width)?;
            for (token, slots) in segments.iter().flat_map(AttentionSegment::own_keys) {
                to.slice_set(&from.narrow(0, token, slots.len())?.contiguous()?, 0, slots.start)?;
            }
        }
        Ok(())
    }
}

/// Copies columns of the tokens of segments to the slots of their keys.
struct WriteSlots<'a> {
    segments: &'a [AttentionSegment],
    /// The first column.
    column: usize,
}

impl InplaceOp2 for WriteSlots<'_> {
    fn name(&self) -> &'static str {
        "write-cache"
    }

    fn cpu_fwd(&self, to: &mut CpuStorage, lt: &Layout, from: &CpuStorage, lf: &Layout) -> Result<()> {
        let (width, stride) = (lt.dims()[1], lf.dims()[1]);
        let to = cpu_tensor::values_mut(to, lt, self.name())?;
        let from = cpu_tensor::values(from, lf, self.name())?;
        for (token, slots) in self.segments.iter().flat_map(AttentionSegment::own_keys) {
            for (token, slot) in (token..).zip(slots) {
                let own = &from[token * stride + self.column..][..width];
                to[slot * width..(slot + 1) * width].copy_from_slice(own);
            }
        }
        Ok(())
    }
}
