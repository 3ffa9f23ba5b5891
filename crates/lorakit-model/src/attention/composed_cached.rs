//! Attention to cached keys made of candle's own ops, for devices without a kernel of ours: sequences attended to together
//! are padded to the longest of them.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::heads::AttentionHeads;
use crate::attention::score_masks::CachedBlock;
use crate::attention::sdpa::Sdpa;
use candle_core::{Result, Tensor};

/// The same as [`cached_attention`](crate::attention::cached_attention), on any device.
pub fn composed_cached_attention(
    qkv: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: AttentionHeads,
    layout: &AttentionLayout,
) -> Result<Tensor> {
    let queries = qkv.narrow(1, 0, heads.queries * heads.features)?.contiguous()?;
    let cached = layout.masks.cached(heads, &layout.segments, qkv.dim(0)?, qkv.device())?;
    let output = |part: &CachedBlock| {
        let (n, _, q, k) = part.mask.dims4()?;
        let of = |t: &Tensor, index: &Tensor, length: usize| t.index_select(index, 0)?.reshape((n, length, t.dim(1)?));
        let (own, keys) = (of(&queries, &part.queries, q)?, of(keys, &part.slots, k)?);
        let out = Sdpa::new(heads, &own, &keys, &of(values, &part.slots, k)?, &part.mask)?.output()?;
        out.reshape((n * q, heads.queries * heads.features))
    };
    let outputs: Vec<Tensor> = cached.parts.iter().map(output).collect::<Result<_>>()?;
    if outputs.is_empty() {
        return queries.zeros_like();
    }
    Tensor::cat(&outputs, 0)?.index_select(&cached.order, 0)
}
