//! The ops of attention: on a CPU one of our kernels, chosen here and nowhere else; on other devices composed of candle's
//! own ops.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::composed::{composed_rotate, composed_self_attention};
use crate::attention::composed_cached::composed_cached_attention;
use crate::attention::heads::AttentionHeads;
use crate::attention::{blockwise, few_queries, small_head};
use crate::layer::rope::RopeTable;
use candle_core::{Result, Shape, Tensor, bail};
use lorakit_lora::kernels::cpu_tensor;
use lorakit_lora::kernels::op::{self, Input, Op};
use rayon::prelude::*;

/// Causal attention of packed sequences to themselves: `qkv`, `[tokens, (queries + 2 keys) features]`, is rotated and
/// attended within each segment: `[tokens, queries * features]`. Differentiable.
pub fn self_attention(qkv: &Tensor, heads: AttentionHeads, layout: &AttentionLayout) -> Result<Tensor> {
    if !qkv.device().is_cpu() {
        return composed_self_attention(qkv, heads, layout);
    }
    op::unary(SelfAttention { heads, layout: layout.clone() }, qkv)
}

/// Rotates the queries and keys within `qkv`, as [`self_attention`] does by itself. Not differentiable on a CPU.
pub fn rotate(qkv: &Tensor, heads: AttentionHeads, rope: &RopeTable) -> Result<Tensor> {
    if !qkv.device().is_cpu() {
        return composed_rotate(qkv, heads, rope);
    }
    let rotated = cpu_tensor::with_values(&qkv.contiguous()?, "rotate", |qkv| rotate_rows(&heads, rope, qkv))?;
    Tensor::from_vec(rotated, qkv.shape(), qkv.device())
}

/// Attention of the rotated queries within `qkv` to cached keys and values, `[slots, keys * features]` each. Not
/// differentiable on a CPU.
pub fn cached_attention(
    qkv: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: AttentionHeads,
    layout: &AttentionLayout,
) -> Result<Tensor> {
    if !qkv.device().is_cpu() {
        return composed_cached_attention(qkv, keys, values, heads, layout);
    }
    let name = "cached-attention";
    let y = cpu_tensor::with_values(&qkv.contiguous()?, name, |qkv| {
        cpu_tensor::with_values(keys, name, |keys| {
            cpu_tensor::with_values(values, name, |values| {
                let attend = match few_queries::supports(&layout.segments) {
                    true => few_queries::attend_cached,
                    false => blockwise::attend_cached,
                };
                attend(&heads, &layout.segments, qkv, [keys, values])
            })
        })
    })???;
    Tensor::from_vec(y, (qkv.dim(0)?, heads.queries * heads.features), qkv.device())
}

/// The CPU kernels of self-attention.
enum Kernel {
    /// Matrix products over blocks of queries.
    Blockwise,
    /// Vectors over queries, for heads of few features.
    SmallHead,
}

impl Kernel {
    fn of(heads: &AttentionHeads) -> Self {
        if small_head::supports(heads) { Self::SmallHead } else { Self::Blockwise }
    }
}

/// [`self_attention`] on a CPU.
pub(crate) struct SelfAttention {
    pub(crate) heads: AttentionHeads,
    pub(crate) layout: AttentionLayout,
}

impl Op<1> for SelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn forward(&self, [qkv]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let (tokens, width) = qkv.matrix()?;
        if width != self.heads.fused_width() {
            bail!("attention of {:?} was given {width} features", self.heads);
        }
        let y = match Kernel::of(&self.heads) {
            Kernel::Blockwise => blockwise::attend(&self.heads, &self.layout, qkv.values),
            Kernel::SmallHead => small_head::attend(&self.heads, &self.layout, qkv.values),
        };
        Ok((y, (tokens, self.heads.queries * self.heads.features).into()))
    }

    fn backward(&self, [qkv]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        let dqkv = match Kernel::of(&self.heads) {
            Kernel::Blockwise => blockwise::attend_backward(&self.heads, &self.layout, qkv.values, dy),
            Kernel::SmallHead => small_head::attend_backward(&self.heads, &self.layout, qkv.values, dy),
        };
        Ok([Some(dqkv)])
    }
}

/// Rows worth a thread of their own.
const ROTATED_ROWS: usize = 16;

/// `qkv` with its queries and keys rotated.
fn rotate_rows(heads: &AttentionHeads, rope: &RopeTable, qkv: &[f32]) -> Vec<f32> {
    let mut qkv = qkv.to_vec();
    let rotated = (heads.queries + heads.keys) * heads.features;
    qkv.par_chunks_exact_mut(heads.fused_width()).with_min_len(ROTATED_ROWS).enumerate().for_each(|(token, row)| {
        for head in row[..rotated].chunks_exact_mut(heads.features) {
            rope.rotate(token, head);
        }
    });
    qkv
}
