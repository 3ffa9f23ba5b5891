//! The ops of attention: on a CPU one of our kernels, chosen here and nowhere else; on other devices composed of candle's
//! own ops.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::composed::{composed_rotate, composed_self_attention};
use crate::attention::composed_cached::composed_cached_attention;
use crate::attention::distance_bias::DistanceTable;
use crate::attention::heads::AttentionHeads;
use crate::attention::segment::AttentionSegment;
use crate::attention::{blockwise, few_queries, small_head};
use crate::layer::rope::RopeTable;
use candle_core::{Result, Shape, Tensor, bail};
use lorakit_lora::kernels::cpu_tensor;
use lorakit_lora::kernels::op::{self, Input, Op};
use rayon::prelude::*;
use std::sync::Arc;

/// Attention of packed sequences to themselves: `qkv`, `[tokens, (queries + 2 keys) features]`, is rotated and attended
/// within each segment: `[tokens, queries * features]`. Differentiable.
pub fn self_attention(qkv: &Tensor, heads: AttentionHeads, layout: &AttentionLayout) -> Result<Tensor> {
    if !qkv.device().is_cpu() {
        return composed_self_attention(qkv, heads, layout);
    }
    op::unary(SelfAttention { heads, layout: layout.clone() }, qkv)
}

/// [`self_attention`] on a CPU whose scores have biases: `table`, `[heads, distances]`, as
/// [`DistanceBias::table`](crate::attention::distance_bias::DistanceBias::table).
pub(crate) fn biased_attention(
    qkv: &Tensor,
    table: &Tensor,
    heads: AttentionHeads,
    layout: &AttentionLayout,
) -> Result<Tensor> {
    op::binary(SelfAttention { heads, layout: layout.clone() }, qkv, table)
}

/// Attention on a CPU of the queries `q`, `[tokens, queries * features]`, to the keys and values of other tokens, `kv`,
/// `[other tokens, 2 keys * features]`, which are the segments' keys. Differentiable.
pub(crate) fn cross_attention(
    q: &Tensor,
    kv: &Tensor,
    heads: AttentionHeads,
    segments: &Arc<[AttentionSegment]>,
) -> Result<Tensor> {
    op::binary(CrossAttention { heads, segments: segments.clone() }, q, kv)
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
                let cached = [keys, values];
                match few_queries::supports(&layout.segments) {
                    true => few_queries::attend_cached(&heads, &layout.segments, qkv, cached),
                    false => {
                        blockwise::attend_cached(&heads, &layout.segments, (qkv, heads.fused_width()), cached, None)
                    }
                }
            })
        })
    })???;
    Tensor::from_vec(y, (qkv.dim(0)?, heads.queries * heads.features), qkv.device())
}

/// [`cached_attention`] on a CPU whose scores have biases, or of queries alone, without the keys and values of their own.
pub(crate) fn biased_cached_attention(
    queries: &Tensor,
    [keys, values]: [&Tensor; 2],
    table: Option<&Tensor>,
    heads: AttentionHeads,
    segments: &[AttentionSegment],
) -> Result<Tensor> {
    let (tokens, width) = queries.dims2()?;
    let name = "cached-attention";
    let of = |tensor: &Tensor| cpu_tensor::with_values(tensor, name, <[f32]>::to_vec);
    let table = table.map(of).transpose()?;
    let bias = table.as_deref().map(|table| DistanceTable::new(table, heads.queries));
    let y = cpu_tensor::with_values(&queries.contiguous()?, name, |queries| {
        cpu_tensor::with_values(keys, name, |keys| {
            cpu_tensor::with_values(values, name, |values| {
                blockwise::attend_cached(&heads, segments, (queries, width), [keys, values], bias)
            })
        })
    })???;
    Tensor::from_vec(y, (tokens, heads.queries * heads.features), queries.device())
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
            Kernel::Blockwise => blockwise::attend(&self.heads, &self.layout, qkv.values, None),
            Kernel::SmallHead => small_head::attend(&self.heads, &self.layout, qkv.values),
        };
        Ok((y, (tokens, self.heads.queries * self.heads.features).into()))
    }

    fn backward(&self, [qkv]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        let dqkv = match Kernel::of(&self.heads) {
            Kernel::Blockwise => blockwise::attend_backward(&self.heads, &self.layout, [qkv.values, dy], None, None),
            Kernel::SmallHead => small_head::attend_backward(&self.heads, &self.layout, qkv.values, dy),
        };
        Ok([Some(dqkv)])
    }
}

/// [`biased_attention`]: of `qkv` and the table.
impl Op<2> for SelfAttention {
    fn name(&self) -> &'static str {
        "biased-attention"
    }

    fn forward(&self, [qkv, table]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        let (tokens, width) = qkv.matrix()?;
        if width != self.heads.fused_width() || table.matrix()?.0 != self.heads.queries {
            bail!("attention of {:?} was given {width} features and biases of {:?}", self.heads, table.dims);
        }
        let bias = DistanceTable::new(table.values, self.heads.queries);
        let y = blockwise::attend(&self.heads, &self.layout, qkv.values, Some(bias));
        Ok((y, (tokens, self.heads.queries * self.heads.features).into()))
    }

    fn backward(&self, [qkv, table]: [Input; 2], dy: &[f32], [_, trains]: [bool; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        let bias = DistanceTable::new(table.values, self.heads.queries);
        let mut dtable = trains.then(|| vec![0.0; table.values.len()]);
        let values = [qkv.values, dy];
        let dqkv = blockwise::attend_backward(&self.heads, &self.layout, values, Some(bias), dtable.as_deref_mut());
        Ok([Some(dqkv), dtable])
    }
}

/// [`cross_attention`] on a CPU.
pub(crate) struct CrossAttention {
    pub(crate) heads: AttentionHeads,
    pub(crate) segments: Arc<[AttentionSegment]>,
}

impl Op<2> for CrossAttention {
    fn name(&self) -> &'static str {
        "cross-attention"
    }

    fn forward(&self, [q, kv]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        let ((tokens, width), (_, kv_width)) = (q.matrix()?, kv.matrix()?);
        if width != self.heads.queries * self.heads.features || kv_width != 2 * self.heads.key_width() {
            bail!("cross-attention of {:?} was given {width} and {kv_width} features", self.heads);
        }
        let y = blockwise::attend_across(&self.heads, &self.segments, q.values, kv.values);
        Ok((y, (tokens, width).into()))
    }

    fn backward(&self, [q, kv]: [Input; 2], dy: &[f32], _: [bool; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        let values = [q.values, kv.values, dy];
        Ok(blockwise::attend_across_backward(&self.heads, &self.segments, values).map(Some))
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
