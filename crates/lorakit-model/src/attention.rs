//! Causal attention over segments of packed rows, with its backward.
//!
//! A segment says where a row's queries and keys stand, so that packing, cached decoding, a sliding window and a
//! prefix shared among choices are one op. Queries are taken in blocks: nothing of size `[heads, seq, seq]` is held.

use crate::masked_attention::{plain_rotated, plain_self_attention};
use crate::narrow_attention::{self, is_narrow};
use crate::padded_attention::plain_cached_attention;
use crate::rope::Angles;
use crate::softmax::{Softmax, SoftmaxBackward};
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape, Tensor, bail};
use lorakit_lora::cpu;
use lorakit_lora::product::{Destination, Threads, View, ViewMut, multiply};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

pub use crate::heads::Heads;
pub use crate::packing::{Packing, Segment};

/// Attention of packed rows to themselves: `qkv`, `[tokens, (queries + 2 keys) features]`, is rotated by its angles
/// and attended within each segment: `[tokens, queries * features]`. Differentiable.
pub fn self_attention(qkv: &Tensor, heads: Heads, packing: &Packing) -> Result<Tensor> {
    if !qkv.device().is_cpu() {
        return plain_self_attention(qkv, heads, packing);
    }
    qkv.contiguous()?.apply_op1(SelfAttention { heads, packing: packing.clone() })
}

/// The gradient of `qkv` from that of what [`self_attention`] made of it on a CPU.
pub(crate) fn self_attention_backward(qkv: &Tensor, heads: Heads, packing: &Packing, dy: &Tensor) -> Result<Tensor> {
    SelfAttention { heads, packing: packing.clone() }.backward(&qkv.contiguous()?, dy)
}

/// Rotates the queries and keys within `qkv`, as [`self_attention`] does for itself.
pub fn rotated(qkv: &Tensor, heads: Heads, angles: &Angles) -> Result<Tensor> {
    if !qkv.device().is_cpu() {
        return plain_rotated(qkv, heads, angles);
    }
    qkv.contiguous()?.apply_op1_no_bwd(&Rotate { heads, angles: angles.clone() })
}

/// Attention of the rotated queries within `qkv` to cached keys and values, `[slots, keys * features]` each.
pub fn cached_attention(
    qkv: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: Heads,
    packing: &Packing,
) -> Result<Tensor> {
    if !qkv.device().is_cpu() {
        return plain_cached_attention(qkv, keys, values, heads, packing);
    }
    let segments = packing.segments.clone();
    qkv.contiguous()?.apply_op3_no_bwd(keys, values, &CachedAttention { heads, segments })
}

/// Queries that are handled at a time.
const BLOCK: usize = 64;

/// Where the rows of one head stand within wider rows.
#[derive(Clone, Copy)]
struct Strided<'a> {
    data: &'a [f32],
    stride: usize,
    start: usize,
}

impl Strided<'_> {
    /// Copies `features` of each of `rows` one behind the other.
    fn gather(&self, rows: impl Iterator<Item = usize>, features: usize) -> Vec<f32> {
        let mut gathered = Vec::with_capacity(rows.size_hint().0 * features);
        rows.for_each(|r| gathered.extend_from_slice(&self.data[r * self.stride + self.start..][..features]));
        gathered
    }
}

/// One key head of one segment: rotated queries of the heads that share it, keys and values, one behind the other.
struct Task {
    queries: usize,
    keys: usize,
    /// `[shared heads][queries, features]`.
    q: Vec<f32>,
    /// `[keys, features]`.
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Heads {
    /// `softmax(q kᵀ / sqrt(features))` of a block of queries of one head: `[block, keys of the block]`, with the
    /// first key that any of them sees.
    fn weights(&self, task: &Task, head: usize, block: &Range<usize>) -> (Vec<f32>, Range<usize>) {
        let f = self.features;
        let first = self.visible(block.start, task.queries, task.keys).start;
        let seen = first..self.visible(block.end - 1, task.queries, task.keys).end;
        let mut weights = vec![0.0; block.len() * seen.len()];
        multiply(
            ViewMut::new(&mut weights, block.len(), seen.len(), seen.len()),
            Destination::Overwrite,
            View::new(&task.q[(head * task.queries + block.start) * f..], block.len(), f, f),
            View::new(&task.k[seen.start * f..], seen.len(), f, f).transposed(),
            1.0 / (f as f32).sqrt(),
            Threads::One,
        );
        let visible = |i: usize| {
            let visible = self.visible(block.start + i, task.queries, task.keys);
            visible.start - seen.start..visible.end - seen.start
        };
        cpu::with_widest_vectors(Softmax { scores: &mut weights, width: seen.len(), visible });
        (weights, seen)
    }

    /// The outputs of a task, `[shared heads][queries, features]`.
    fn attend(&self, task: &Task) -> Vec<f32> {
        let f = self.features;
        let mut out = vec![0.0; task.q.len()];
        for head in 0..self.shared() {
            for block in blocks(task.queries) {
                let (weights, seen) = self.weights(task, head, &block);
                multiply(
                    ViewMut::new(&mut out[(head * task.queries + block.start) * f..], block.len(), f, f),
                    Destination::Overwrite,
                    View::new(&weights, block.len(), seen.len(), seen.len()),
                    View::new(&task.v[seen.start * f..], seen.len(), f, f),
                    1.0,
                    Threads::One,
                );
            }
        }
        out
    }

    /// The gradients of a task's q, k and v from that of its outputs, all in the task's own form.
    ///
    /// With `P` the weights: `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = P (dP - rowsum(P dP)) / sqrt(features)`,
    /// `dQ = dS K`, `dK = dSᵀ Q`.
    fn attend_backward(&self, task: &Task, dout: &[f32]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let f = self.features;
        let (mut dq, mut dk, mut dv) = (vec![0.0; task.q.len()], vec![0.0; task.k.len()], vec![0.0; task.v.len()]);
        let scale = 1.0 / (f as f32).sqrt();
        for head in 0..self.shared() {
            for block in blocks(task.queries) {
                let (mut weights, seen) = self.weights(task, head, &block);
                let (rows, keys) = (block.len(), seen.len());
                let at = (head * task.queries + block.start) * f;
                let dout = View::new(&dout[at..], rows, f, f);
                let p = View::new(&weights, rows, keys, keys);
                multiply(
                    ViewMut::new(&mut dv[seen.start * f..], keys, f, f),
                    Destination::Add,
                    p.transposed(),
                    dout,
                    1.0,
                    Threads::One,
                );
                let mut dp = vec![0.0; rows * keys];
                let v = View::new(&task.v[seen.start * f..], keys, f, f);
                multiply(
                    ViewMut::new(&mut dp, rows, keys, keys),
                    Destination::Overwrite,
                    dout,
                    v.transposed(),
                    1.0,
                    Threads::One,
                );
                cpu::with_widest_vectors(SoftmaxBackward { weights: &mut weights, dp: &dp, width: keys });
                let ds = View::new(&weights, rows, keys, keys);
                let k = View::new(&task.k[seen.start * f..], keys, f, f);
                let q = View::new(&task.q[at..], rows, f, f);
                multiply(ViewMut::new(&mut dq[at..], rows, f, f), Destination::Overwrite, ds, k, scale, Threads::One);
                multiply(
                    ViewMut::new(&mut dk[seen.start * f..], keys, f, f),
                    Destination::Add,
                    ds.transposed(),
                    q,
                    scale,
                    Threads::One,
                );
            }
        }
        (dq, dk, dv)
    }

    /// Every key head of every segment.
    fn tasks<'s>(&self, segments: &'s [Segment]) -> Vec<(&'s Segment, usize)> {
        segments.iter().flat_map(|segment| (0..self.keys).map(move |head| (segment, head))).collect()
    }

    /// Writes the outputs of all tasks, `[tokens, queries * features]`.
    fn assemble(&self, tokens: usize, tasks: &[(&Segment, usize)], outs: &[Vec<f32>]) -> Vec<f32> {
        let mut y = vec![0.0; tokens * self.queries * self.features];
        for ((segment, key_head), out) in tasks.iter().zip(outs) {
            for local in 0..self.shared() {
                let column = (key_head * self.shared() + local) * self.features;
                self.scatter(out, local, segment, &mut y, self.queries * self.features, column);
            }
        }
        y
    }

    /// Writes head `local` of a task's `[heads][queries, features]` to `column` of the segment's rows.
    fn scatter(&self, from: &[f32], local: usize, segment: &Segment, to: &mut [f32], stride: usize, column: usize) {
        let (f, n) = (self.features, segment.queries.len());
        for (token, row) in segment.queries.clone().zip(from[local * n * f..].chunks_exact(f)) {
            to[token * stride + column..][..f].copy_from_slice(row);
        }
    }
}

fn blocks(queries: usize) -> impl Iterator<Item = Range<usize>> {
    (0..queries).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(queries))
}

struct SelfAttention {
    heads: Heads,
    packing: Packing,
}

impl SelfAttention {
    fn backward(&self, qkv: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let dy = dy.contiguous()?;
        let dqkv = cpu::with_values(qkv, self.name(), |qkv| {
            cpu::with_values(&dy, self.name(), |dy| self.input_gradient(qkv, dy))
        })??;
        Tensor::from_vec(dqkv, qkv.shape(), qkv.device())
    }

    /// Gathers and rotates one key head of a segment.
    fn task(&self, qkv: &[f32], segment: &Segment, key_head: usize) -> Task {
        let Heads { queries, keys, features: f, .. } = self.heads;
        let stride = self.heads.fused_width();
        let head = |index: usize| {
            let rows = Strided { data: qkv, stride, start: index * f };
            rows.gather(segment.queries.clone(), f)
        };
        let turn = |values: &mut [f32]| {
            for (token, head) in segment.queries.clone().zip(values.chunks_exact_mut(f)) {
                self.packing.angles.rotate(token, head);
            }
        };
        let mut q = Vec::with_capacity(self.heads.shared() * segment.queries.len() * f);
        for local in 0..self.heads.shared() {
            let mut one = head(key_head * self.heads.shared() + local);
            turn(&mut one);
            q.extend(one);
        }
        let (mut k, v) = (head(queries + key_head), head(queries + keys + key_head));
        turn(&mut k);
        Task { queries: segment.queries.len(), keys: segment.queries.len(), q, k, v }
    }

    fn turn_back(&self, segment: &Segment, values: &mut [f32]) {
        // Chunks of nothing panic, and a row may have no token.
        for head in values.chunks_exact_mut((segment.queries.len() * self.heads.features).max(1)) {
            for (token, head) in segment.queries.clone().zip(head.chunks_exact_mut(self.heads.features)) {
                self.packing.angles.rotate_back(token, head);
            }
        }
    }

    /// A task's part of the output's gradient, `[shared heads][queries, features]`.
    fn gathered_gradient(&self, dy: &[f32], segment: &Segment, key_head: usize) -> Vec<f32> {
        let f = self.heads.features;
        let shared = self.heads.shared();
        let head = |local| {
            let rows = Strided { data: dy, stride: self.heads.queries * f, start: (key_head * shared + local) * f };
            rows.gather(segment.queries.clone(), f)
        };
        (0..shared).map(head).collect::<Vec<_>>().concat()
    }

    fn input_gradient(&self, qkv: &[f32], dy: &[f32]) -> Vec<f32> {
        let heads = &self.heads;
        if is_narrow(heads.features) {
            return narrow_attention::attend_backward(heads, &self.packing, qkv, dy);
        }
        let tasks = heads.tasks(&self.packing.segments);
        let gradients: Vec<_> = tasks
            .par_iter()
            .map(|(segment, key_head)| {
                let task = self.task(qkv, segment, *key_head);
                let (mut dq, mut dk, dv) =
                    heads.attend_backward(&task, &self.gathered_gradient(dy, segment, *key_head));
                self.turn_back(segment, &mut dq);
                self.turn_back(segment, &mut dk);
                (dq, dk, dv)
            })
            .collect();
        let (f, width) = (heads.features, heads.fused_width());
        let mut dqkv = vec![0.0; qkv.len()];
        for ((segment, key_head), (dq, dk, dv)) in tasks.iter().zip(&gradients) {
            for local in 0..heads.shared() {
                heads.scatter(dq, local, segment, &mut dqkv, width, (key_head * heads.shared() + local) * f);
            }
            heads.scatter(dk, 0, segment, &mut dqkv, width, (heads.queries + key_head) * f);
            heads.scatter(dv, 0, segment, &mut dqkv, width, (heads.queries + heads.keys + key_head) * f);
        }
        dqkv
    }
}

impl CustomOp1 for SelfAttention {
    fn name(&self) -> &'static str {
        "self-attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = layout.shape().dims2()?;
        if width != self.heads.fused_width() {
            bail!("attention of {:?} was given {width} features", self.heads);
        }
        let (qkv, shape) = (cpu::values(qkv, layout, self.name())?, (tokens, self.heads.queries * self.heads.features));
        if is_narrow(self.heads.features) {
            return cpu::result(narrow_attention::attend(&self.heads, &self.packing, qkv), shape);
        }
        let tasks = self.heads.tasks(&self.packing.segments);
        let outs: Vec<Vec<f32>> =
            tasks.par_iter().map(|(segment, head)| self.heads.attend(&self.task(qkv, segment, *head))).collect();
        cpu::result(self.heads.assemble(tokens, &tasks, &outs), shape)
    }

    fn bwd(&self, qkv: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        self.backward(qkv, dy).map(Some)
    }
}

struct Rotate {
    heads: Heads,
    angles: Angles,
}

impl CustomOp1 for Rotate {
    fn name(&self) -> &'static str {
        "rotate"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut qkv = cpu::values(qkv, layout, self.name())?.to_vec();
        let turned = (self.heads.queries + self.heads.keys) * self.heads.features;
        for (token, row) in qkv.chunks_exact_mut(self.heads.fused_width()).enumerate() {
            for head in row[..turned].chunks_exact_mut(self.heads.features) {
                self.angles.rotate(token, head);
            }
        }
        cpu::result(qkv, layout.shape().clone())
    }
}

struct CachedAttention {
    heads: Heads,
    segments: Arc<[Segment]>,
}

impl CustomOp3 for CachedAttention {
    fn name(&self) -> &'static str {
        "cached-attention"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (tokens, width) = lq.shape().dims2()?;
        let (qkv, k, v) =
            (cpu::values(qkv, lq, self.name())?, cpu::values(k, lk, self.name())?, cpu::values(v, lv, self.name())?);
        let (f, shared, stride) = (self.heads.features, self.heads.shared(), self.heads.key_width());
        let tasks = self.heads.tasks(&self.segments);
        let outs: Vec<Vec<f32>> = tasks
            .par_iter()
            .map(|(segment, key_head)| {
                let q = |local| {
                    Strided { data: qkv, stride: width, start: (key_head * shared + local) * f }
                        .gather(segment.queries.clone(), f)
                };
                let slots = || segment.keys.iter().cloned().flatten();
                let cached = |data| Strided { data, stride, start: key_head * f }.gather(slots(), f);
                let task = Task {
                    queries: segment.queries.len(),
                    keys: slots().count(),
                    q: (0..shared).map(q).collect::<Vec<_>>().concat(),
                    k: cached(k),
                    v: cached(v),
                };
                self.heads.attend(&task)
            })
            .collect();
        cpu::result(self.heads.assemble(tokens, &tasks, &outs), (tokens, self.heads.queries * f))
    }
}
