//! The ops of attention: on a CPU one of our kernels, chosen here and nowhere else; on other devices composed of candle's
//! own ops.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::composed::{composed_rotate, composed_self_attention};
use crate::attention::composed_cached::composed_cached_attention;
use crate::attention::distance_bias::DistanceTable;
use crate::attention::heads::AttentionHeads;
use crate::attention::segment::AttentionSegment;
use crate::attention::small_head::SmallHeads;
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
    op::unary(SelfAttention::new(heads, layout), qkv)
}

/// [`self_attention`] on a CPU whose scores have biases: `table`, `[heads, distances]`, as
/// [`DistanceBias::table`](crate::attention::distance_bias::DistanceBias::table).
pub(crate) fn biased_attention(
    qkv: &Tensor,
    table: &Tensor,
    heads: AttentionHeads,
    layout: &AttentionLayout,
) -> Result<Tensor> {
    op::binary(SelfAttention::new(heads, layout), qkv, table)
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
    attend_cached(qkv, [keys, values], None, heads, &layout.segments)
}

/// [`cached_attention`] on a CPU of queries that are the first columns of `rows`, by a kernel for their number; `table` holds
/// the biases of scores, if they have any.
pub(crate) fn attend_cached(
    rows: &Tensor,
    [keys, values]: [&Tensor; 2],
    table: Option<&Tensor>,
    heads: AttentionHeads,
    segments: &[AttentionSegment],
) -> Result<Tensor> {
    let (tokens, width) = rows.dims2()?;
    let name = "cached-attention";
    let of = |tensor: &Tensor| cpu_tensor::with_values(tensor, name, <[f32]>::to_vec);
    let table = table.map(of).transpose()?;
    let bias = table.as_deref().map(|table| DistanceTable::new(table, heads.queries));
    let y = cpu_tensor::with_values(&rows.contiguous()?, name, |rows| {
        cpu_tensor::with_values(keys, name, |keys| {
            cpu_tensor::with_values(values, name, |values| {
                let attend = match few_queries::supports(segments) {
                    true => few_queries::attend_cached,
                    false => blockwise::attend_cached,
                };
                attend(&heads, segments, (rows, width), [keys, values], bias)
            })
        })
    })???;
    Tensor::from_vec(y, (tokens, heads.queries * heads.features), rows.device())
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
    heads: AttentionHeads,
    layout: AttentionLayout,
    /// Whether the output of each token is wanted; None if all are.
    wanted: Option<Arc<[bool]>>,
}

impl SelfAttention {
    /// Of all tokens.
    pub(crate) fn new(heads: AttentionHeads, layout: &AttentionLayout) -> Self {
        Self { heads, layout: layout.clone(), wanted: None }
    }

    /// The same if only the outputs of some tokens are used.
    pub(crate) fn of_wanted(self, wanted: Option<Arc<[bool]>>) -> Self {
        Self { wanted, ..self }
    }

    fn small_heads<'a>(&'a self, qkv: &'a [f32]) -> SmallHeads<'a> {
        SmallHeads { heads: &self.heads, layout: &self.layout, wanted: self.wanted.as_deref(), qkv }
    }
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
            Kernel::SmallHead => small_head::attend(self.small_heads(qkv.values)),
        };
        Ok((y, (tokens, self.heads.queries * self.heads.features).into()))
    }

    fn backward(&self, [qkv]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        let dqkv = match Kernel::of(&self.heads) {
            Kernel::Blockwise => blockwise::attend_backward(&self.heads, &self.layout, [qkv.values, dy], None, None),
            Kernel::SmallHead => small_head::attend_backward(self.small_heads(qkv.values), dy),
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::attention::distance_bias::DistanceBias;
    use crate::attention::distance_buckets::DistanceBuckets;
    use crate::layer::rope::RopeFrequencies;
    use candle_core::{D, Device, Var};
    use lorakit_format::rng::Key;
    use std::ops::Range;

    /// Longer than a block of queries, and shorter.
    const LENGTHS: [usize; 3] = [150, 1, 70];

    fn var(name: &str, shape: (usize, usize)) -> Var {
        let mut stream = Key::new(7, name).stream();
        let values = (0..shape.0 * shape.1).map(|_| 2.0 * stream.uniform() - 1.0).collect();
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn segments(queries: &[usize], keys: &[usize]) -> Arc<[AttentionSegment]> {
        let ranges = |lengths: &[usize]| -> Vec<Range<usize>> {
            let range = |end: &mut usize, &len: &usize| {
                *end += len;
                Some(*end - len..*end)
            };
            lengths.iter().scan(0, range).collect()
        };
        let rows = ranges(queries).into_iter().zip(ranges(keys));
        rows.map(|(queries, keys)| AttentionSegment { queries, keys: vec![keys] }).collect()
    }

    /// Attention of `q`, `k` and `v`, `[tokens, heads features]` each, by candle's ops, head by head and row by row, with
    /// biases of distances up to `far`.
    fn composed(
        [q, k, v]: [&Tensor; 3],
        heads: AttentionHeads,
        segments: &[AttentionSegment],
        bias: Option<(&Tensor, i64)>,
    ) -> Tensor {
        let rows = segments.iter().map(|segment| {
            let (n, m) = (segment.queries.len(), segment.keys[0].len());
            let grid = |of: &dyn Fn(i64, i64) -> f32| {
                let values = (0..n * m).map(|at| of((at / m) as i64, (at % m) as i64)).collect();
                Tensor::from_vec(values, (n, m), &Device::Cpu).unwrap()
            };
            let mask = grid(&|query, key| if heads.causal && key > query { -1e30 } else { 0.0 });
            let head = |head: usize| {
                let part = |t: &Tensor, rows: &Range<usize>, head: usize| {
                    let rows = t.narrow(0, rows.start, rows.len()).unwrap();
                    rows.narrow(1, head * heads.features, heads.features).unwrap().contiguous().unwrap()
                };
                let q = part(q, &segment.queries, head);
                let [k, v] = [k, v].map(|t| part(t, &segment.keys[0], head / heads.shared()));
                let mut scores = ((q.matmul(&k.t().unwrap()).unwrap() * heads.scale()).unwrap() + &mask).unwrap();
                if let Some((table, far)) = bias {
                    let at = grid(&|query, key| ((key - query).clamp(-far, far) + far) as f32);
                    let at = at.flatten_all().unwrap().to_dtype(candle_core::DType::U32).unwrap();
                    let own = table.get(head).unwrap().index_select(&at, 0).unwrap().reshape((n, m)).unwrap();
                    scores = (scores + own).unwrap();
                }
                candle_nn::ops::softmax(&scores, D::Minus1).unwrap().matmul(&v).unwrap()
            };
            Tensor::cat(&(0..heads.queries).map(head).collect::<Vec<_>>(), 1).unwrap()
        });
        Tensor::cat(&rows.collect::<Vec<_>>(), 0).unwrap()
    }

    /// Both outputs and their gradients of some variables are the same.
    fn assert_same(found: &Tensor, expected: &Tensor, variables: &[&Var]) {
        let far = |a: &Tensor, b: &Tensor| {
            let differences: Vec<f32> = (a - b).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            differences.into_iter().map(f32::abs).max_by(f32::total_cmp).unwrap()
        };
        assert!(far(found, expected) < 1e-5, "{}", far(found, expected));
        let c = var("c", found.dims2().unwrap());
        let gradients = |y: &Tensor| (y * c.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let (found, expected) = (gradients(found), gradients(expected));
        for variable in variables {
            let of = |store: &candle_core::backprop::GradStore| store.get(variable.as_tensor()).unwrap().clone();
            let (found, expected) = (of(&found), of(&expected));
            assert!(far(&found, &found.zeros_like().unwrap()) > 1e-3);
            assert!(far(&found, &expected) < 1e-4, "gradient: {}", far(&found, &expected));
        }
    }

    #[test]
    fn biased_attention_equals_candle_s_ops() {
        let (buckets, far) = (DistanceBuckets { count: 8, farthest: 20 }, 20);
        let segments = segments(&LENGTHS, &LENGTHS);
        for causal in [true, false] {
            let heads = AttentionHeads { causal, scale: Some(0.7), ..AttentionHeads::new(4, 2, 6) };
            let (qkv, weight) = (var("qkv", (221, heads.fused_width())), var("bias", (8, 4)));
            let table = DistanceBias::new(weight.as_tensor().clone(), buckets, causal).unwrap().table().unwrap();
            let layout = AttentionLayout::new(RopeFrequencies::none().angles(&[]), segments.clone());
            let found = biased_attention(qkv.as_tensor(), &table, heads, &layout).unwrap();
            let part = |start, width| qkv.as_tensor().narrow(1, start, width).unwrap();
            let parts = [part(0, 24), part(24, 12), part(36, 12)];
            let parts = parts.each_ref();
            let expected = composed(parts, heads, &layout.segments, Some((&table, far)));
            assert_same(&found, &expected, &[&qkv, &weight]);
        }
    }

    #[test]
    fn cross_attention_equals_candle_s_ops() {
        let segments = segments(&LENGTHS, &[9, 80, 3]);
        let heads = AttentionHeads { causal: false, ..AttentionHeads::new(4, 2, 6) };
        let (q, kv) = (var("q", (221, 24)), var("kv", (92, 24)));
        let found = cross_attention(q.as_tensor(), kv.as_tensor(), heads, &segments).unwrap();
        let part = |start| kv.as_tensor().narrow(1, start, 12).unwrap();
        let expected = composed([q.as_tensor(), &part(0), &part(12)], heads, &segments, None);
        assert_same(&found, &expected, &[&q, &kv]);
    }
}
