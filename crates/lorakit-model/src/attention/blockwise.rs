//! Attention on a CPU by matrix products over blocks of queries: nothing of size `[heads, seq, seq]` is held. One task of
//! the thread pool takes one key head of one segment.

use crate::attention::attention_layout::AttentionLayout;
use crate::attention::distance_bias::DistanceTable;
use crate::attention::heads::AttentionHeads;
use crate::attention::segment::AttentionSegment;
use crate::attention::softmax::{Softmax, SoftmaxBackward};
use crate::layer::soft_cap::{SoftCap, derivative};
use lorakit_lora::kernels::gemm::{Destination, MatrixMut, MatrixRef, gemm};
use lorakit_lora::kernels::simd;
use lorakit_lora::kernels::uninit_vec::uninit_vec;
use rayon::prelude::*;
use std::ops::Range;

/// The outputs, `[tokens, queries * features]`, of `qkv`, `[tokens, fused width]`.
pub(super) fn attend(
    heads: &AttentionHeads,
    layout: &AttentionLayout,
    qkv: &[f32],
    bias: Option<DistanceTable>,
) -> Vec<f32> {
    let tasks = heads.tasks(&layout.segments);
    let outs: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|(segment, head)| heads.attend(&self_task(heads, layout, qkv, (segment, *head)).with_bias(heads, bias)))
        .collect();
    heads.assemble(&layout.segments, &outs)
}

/// The gradient of `qkv` from that of the outputs. Those of a bias's table are added to `bias_gradient`.
pub(super) fn attend_backward(
    heads: &AttentionHeads,
    layout: &AttentionLayout,
    [qkv, dy]: [&[f32]; 2],
    bias: Option<DistanceTable>,
    bias_gradient: Option<&mut [f32]>,
) -> Vec<f32> {
    let tasks = heads.tasks(&layout.segments);
    let gradients: Vec<TaskGradients> = tasks
        .par_iter()
        .map(|(segment, key_head)| {
            let task = self_task(heads, layout, qkv, (segment, *key_head)).with_bias(heads, bias);
            let task = HeadTask { bias_trains: bias_gradient.is_some(), ..task };
            let mut gradients = heads.attend_backward(&task, &of_queries(heads, dy, segment, *key_head));
            rotate_back(heads, layout, segment, &mut gradients.q);
            rotate_back(heads, layout, segment, &mut gradients.k);
            gradients
        })
        .collect();
    if let (Some(table), Some(sum)) = (bias, bias_gradient) {
        for ((segment, key_head), gradients) in tasks.iter().zip(&gradients) {
            let keys = segment.queries.len();
            for (head, diagonals) in (key_head * heads.shared()..).zip(&gradients.bias) {
                table.add_gradient((head, keys), diagonals, sum);
            }
        }
    }
    let f = heads.features;
    let write = |dqkv: &mut [f32]| {
        for_each_row(&layout.segments, heads.fused_width(), dqkv, |segment, token, row| {
            let (of_segment, tokens) = (&gradients[segment * heads.keys..], layout.segments[segment].queries.len());
            for (key_head, TaskGradients { q, k, v, .. }) in of_segment[..heads.keys].iter().enumerate() {
                heads.put_queries(q, (key_head, tokens), token, row);
                head_mut(row, heads.queries + key_head, f).copy_from_slice(head_row(k, token, f));
                head_mut(row, heads.queries + heads.keys + key_head, f).copy_from_slice(head_row(v, token, f));
            }
        });
    };
    // SAFETY: the heads of queries, keys and values are all columns of a row.
    unsafe { uninit_vec(qkv.len(), write) }
}

/// The outputs, `[tokens, queries * features]`, of the queries `q`, `[tokens, queries * features]`, over the keys and values
/// side by side, `[other tokens, 2 keys * features]`, of other tokens, whose ranges are the segments' keys.
pub(super) fn attend_across(heads: &AttentionHeads, segments: &[AttentionSegment], q: &[f32], kv: &[f32]) -> Vec<f32> {
    let tasks = heads.tasks(segments);
    let attend =
        |(segment, head): &(&AttentionSegment, usize)| heads.attend(&cross_task(heads, [q, kv], segment, *head));
    let outs: Vec<Vec<f32>> = tasks.par_iter().map(attend).collect();
    heads.assemble(segments, &outs)
}

/// The gradients of `q` and `kv` of [`attend_across`] from that of the outputs.
pub(super) fn attend_across_backward(
    heads: &AttentionHeads,
    segments: &[AttentionSegment],
    [q, kv, dy]: [&[f32]; 3],
) -> [Vec<f32>; 2] {
    let tasks = heads.tasks(segments);
    let gradients: Vec<TaskGradients> = tasks
        .par_iter()
        .map(|(segment, key_head)| {
            let task = cross_task(heads, [q, kv], segment, *key_head);
            heads.attend_backward(&task, &of_queries(heads, dy, segment, *key_head))
        })
        .collect();
    let f = heads.features;
    let of = |segment: usize| gradients[segment * heads.keys..][..heads.keys].iter().enumerate();
    let write_q = |dq: &mut [f32]| {
        for_each_row(segments, heads.queries * f, dq, |segment, token, row| {
            for (key_head, gradients) in of(segment) {
                heads.put_queries(&gradients.q, (key_head, segments[segment].queries.len()), token, row);
            }
        });
    };
    // The other tokens in order, as if they asked.
    let tokens = |segment: &AttentionSegment| segment.keys.first().cloned().unwrap_or(0..0);
    let others: Vec<AttentionSegment> =
        segments.iter().map(|segment| AttentionSegment { queries: tokens(segment), keys: Vec::new() }).collect();
    let write_kv = |dkv: &mut [f32]| {
        for_each_row(&others, 2 * heads.key_width(), dkv, |segment, token, row| {
            for (key_head, gradients) in of(segment) {
                head_mut(row, key_head, f).copy_from_slice(head_row(&gradients.k, token, f));
                head_mut(row, heads.keys + key_head, f).copy_from_slice(head_row(&gradients.v, token, f));
            }
        });
    };
    // SAFETY: the query heads are all columns of a row of `q`, the heads of keys and values all of one of `kv`.
    unsafe { [uninit_vec(q.len(), write_q), uninit_vec(kv.len(), write_kv)] }
}

/// The outputs, `[tokens, queries * features]`, of rotated queries, the first columns of `[tokens, width]`, over cached keys
/// and values, `[slots, keys * features]` each.
pub(super) fn attend_cached(
    heads: &AttentionHeads,
    segments: &[AttentionSegment],
    (queries, width): (&[f32], usize),
    [keys, values]: [&[f32]; 2],
    bias: Option<DistanceTable>,
) -> Vec<f32> {
    let (f, shared, stride) = (heads.features, heads.shared(), heads.key_width());
    let tasks = heads.tasks(segments);
    let outs: Vec<Vec<f32>> = tasks
        .par_iter()
        .map(|(segment, key_head)| {
            let q = |local| {
                Strided { data: queries, stride: width, start: (key_head * shared + local) * f }
                    .gather(segment.queries.clone(), f)
            };
            let slots = || segment.keys.iter().cloned().flatten();
            let cached = |data| Strided { data, stride, start: key_head * f }.gather(slots(), f);
            let task = HeadTask {
                head: *key_head,
                queries: segment.queries.len(),
                keys: slots().count(),
                q: (0..shared).map(q).collect::<Vec<_>>().concat(),
                k: cached(keys),
                v: cached(values),
                bias: Vec::new(),
                bias_trains: false,
            };
            heads.attend(&task.with_bias(heads, bias))
        })
        .collect();
    heads.assemble(segments, &outs)
}

/// Queries of a block.
const BLOCK: usize = 64;

/// The rows of one head within wider rows.
#[derive(Clone, Copy)]
struct Strided<'a> {
    data: &'a [f32],
    stride: usize,
    start: usize,
}

impl Strided<'_> {
    /// Copies `features` values of each of `rows` into one contiguous matrix.
    fn gather(&self, rows: impl Iterator<Item = usize>, features: usize) -> Vec<f32> {
        let mut gathered = Vec::with_capacity(rows.size_hint().0 * features);
        rows.for_each(|r| gathered.extend_from_slice(&self.data[r * self.stride + self.start..][..features]));
        gathered
    }
}

/// One key head of one segment: rotated queries of the heads that share it, keys and values, each contiguous.
struct HeadTask {
    /// The key head.
    head: usize,
    queries: usize,
    keys: usize,
    /// `[shared heads][queries, features]`.
    q: Vec<f32>,
    /// `[keys, features]`.
    k: Vec<f32>,
    v: Vec<f32>,
    /// The biases of each shared head, as [`DistanceTable::diagonals`]; none where scores have no biases.
    bias: Vec<Vec<f32>>,
    /// Whether the backward is to return the gradients of the biases.
    bias_trains: bool,
}

/// The gradients of a [`HeadTask`], in its own layout.
struct TaskGradients {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    bias: Vec<Vec<f32>>,
}

impl HeadTask {
    /// The same with biases by distance, if there are any.
    fn with_bias(mut self, heads: &AttentionHeads, table: Option<DistanceTable>) -> Self {
        let shared = self.head * heads.shared()..(self.head + 1) * heads.shared();
        let of = |table: DistanceTable| shared.map(|head| table.diagonals(head, self.queries, self.keys)).collect();
        self.bias = table.map(of).unwrap_or_default();
        self
    }

    /// Where the biases of a query's keys from `first` on begin among the diagonals.
    fn diagonal(&self, query: usize, first: usize) -> usize {
        self.queries - 1 - query + first
    }
}

impl AttentionHeads {
    /// The scores `q kᵀ` of a block of queries of one head, scaled, capped and biased: `[block, seen]`, with the range of keys
    /// that any of them sees.
    fn scores(&self, task: &HeadTask, head: usize, block: &Range<usize>) -> (Vec<f32>, Range<usize>) {
        let f = self.features;
        let first = self.visible(block.start, task.queries, task.keys).start;
        let seen = first..self.visible(block.end - 1, task.queries, task.keys).end;
        let mut scores = vec![0.0; block.len() * seen.len()];
        gemm(
            MatrixMut::new(&mut scores, block.len(), seen.len(), seen.len()),
            Destination::Overwrite,
            MatrixRef::new(&task.q[(head * task.queries + block.start) * f..], block.len(), f, f),
            MatrixRef::new(&task.k[seen.start * f..], seen.len(), f, f).transposed(),
            self.kernel_scale(),
        );
        if let Some(cap) = self.soft_cap {
            simd::dispatch(SoftCap { values: &mut scores, cap: cap as f32 });
        }
        if let Some(bias) = task.bias.get(head) {
            for (query, row) in block.clone().zip(scores.chunks_exact_mut(seen.len())) {
                let own = &bias[task.diagonal(query, seen.start)..];
                row.iter_mut().zip(own).for_each(|(score, bias)| *score += bias);
            }
        }
        (scores, seen)
    }

    /// Turns the scores of [`AttentionHeads::scores`] into weights.
    fn softmax(&self, task: &HeadTask, block: &Range<usize>, seen: &Range<usize>, scores: &mut [f32]) {
        let visible = |i: usize| {
            let visible = self.visible(block.start + i, task.queries, task.keys);
            visible.start - seen.start..visible.end - seen.start
        };
        simd::dispatch(Softmax { scores, width: seen.len(), visible });
    }

    /// The derivatives of the soft cap at capped scores, if there is one.
    fn cap_derivatives(&self, capped: &[f32]) -> Option<Vec<f32>> {
        let cap = self.soft_cap? as f32;
        Some(capped.iter().map(|&score| derivative(score, cap)).collect())
    }

    /// The outputs of a task, `[shared heads][queries, features]`.
    fn attend(&self, task: &HeadTask) -> Vec<f32> {
        let f = self.features;
        let mut out = vec![0.0; task.q.len()];
        let attend_block = |head: usize, number: usize, out: &mut [f32]| {
            let block = number * BLOCK..number * BLOCK + out.len() / f;
            let (mut weights, seen) = self.scores(task, head, &block);
            self.softmax(task, &block, &seen, &mut weights);
            gemm(
                MatrixMut::new(out, block.len(), f, f),
                Destination::Overwrite,
                MatrixRef::new(&weights, block.len(), seen.len(), seen.len()),
                MatrixRef::new(&task.v[seen.start * f..], seen.len(), f, f),
                1.0,
            );
        };
        // A long sequence is shared by threads: it may be the only one, of few key heads.
        let heads = out.par_chunks_mut((task.queries * f).max(1)).enumerate();
        heads.with_min_len(BLOCK.div_ceil(task.queries.max(1))).for_each(|(head, out)| {
            let blocks = out.par_chunks_mut(BLOCK * f).enumerate();
            blocks.for_each(|(number, out)| attend_block(head, number, out));
        });
        out
    }

    /// The gradients of a task from that of its outputs.
    ///
    /// With `P` the weights: `dV = Pᵀ dO`, `dP = dO Vᵀ`, `dS = scale P (dP - rowsum(P dP))`, times the derivative of a soft
    /// cap, `dQ = dS K`, `dK = dSᵀ Q`; a bias has the sum of `dS` over its diagonal, without the scale.
    fn attend_backward(&self, task: &HeadTask, dout: &[f32]) -> TaskGradients {
        let f = self.features;
        let (mut dq, mut dk, mut dv) = (vec![0.0; task.q.len()], vec![0.0; task.k.len()], vec![0.0; task.v.len()]);
        let mut bias: Vec<Vec<f32>> =
            if task.bias_trains { task.bias.iter().map(|own| vec![0.0; own.len()]).collect() } else { Vec::new() };
        let scale = self.kernel_scale();
        for head in 0..self.shared() {
            for block in blocks(task.queries) {
                let (mut weights, seen) = self.scores(task, head, &block);
                let derivatives = self.cap_derivatives(&weights);
                self.softmax(task, &block, &seen, &mut weights);
                let (rows, keys) = (block.len(), seen.len());
                let at = (head * task.queries + block.start) * f;
                let dout = MatrixRef::new(&dout[at..], rows, f, f);
                let p = MatrixRef::new(&weights, rows, keys, keys);
                gemm(
                    MatrixMut::new(&mut dv[seen.start * f..], keys, f, f),
                    Destination::Add,
                    p.transposed(),
                    dout,
                    1.0,
                );
                let mut dp = vec![0.0; rows * keys];
                let v = MatrixRef::new(&task.v[seen.start * f..], keys, f, f);
                gemm(MatrixMut::new(&mut dp, rows, keys, keys), Destination::Overwrite, dout, v.transposed(), 1.0);
                simd::dispatch(SoftmaxBackward { weights: &mut weights, dp: &dp, width: keys });
                if let Some(bias) = bias.get_mut(head) {
                    for (query, row) in block.clone().zip(weights.chunks_exact(keys)) {
                        let own = &mut bias[task.diagonal(query, seen.start)..];
                        own.iter_mut().zip(row).for_each(|(bias, ds)| *bias += ds);
                    }
                }
                weights.iter_mut().zip(derivatives.iter().flatten()).for_each(|(ds, derivative)| *ds *= derivative);
                let ds = MatrixRef::new(&weights, rows, keys, keys);
                let k = MatrixRef::new(&task.k[seen.start * f..], keys, f, f);
                let q = MatrixRef::new(&task.q[at..], rows, f, f);
                gemm(MatrixMut::new(&mut dq[at..], rows, f, f), Destination::Overwrite, ds, k, scale);
                gemm(
                    MatrixMut::new(&mut dk[seen.start * f..], keys, f, f),
                    Destination::Add,
                    ds.transposed(),
                    q,
                    scale,
                );
            }
        }
        TaskGradients { q: dq, k: dk, v: dv, bias }
    }

    /// Every key head of every segment.
    fn tasks<'s>(&self, segments: &'s [AttentionSegment]) -> Vec<(&'s AttentionSegment, usize)> {
        segments.iter().flat_map(|segment| (0..self.keys).map(move |head| (segment, head))).collect()
    }

    /// The outputs of the tasks of all segments, `[tokens, queries * features]`.
    fn assemble(&self, segments: &[AttentionSegment], outs: &[Vec<f32>]) -> Vec<f32> {
        let width = self.queries * self.features;
        let tokens: usize = segments.iter().map(|segment| segment.queries.len()).sum();
        let write = |y: &mut [f32]| {
            for_each_row(segments, width, y, |segment, token, row| {
                let (outs, tokens) = (&outs[segment * self.keys..], segments[segment].queries.len());
                for (key_head, out) in outs[..self.keys].iter().enumerate() {
                    self.put_queries(out, (key_head, tokens), token, row);
                }
            });
        };
        // SAFETY: the query heads of all key heads are all columns of a row.
        unsafe { uninit_vec(tokens * width, write) }
    }

    /// Copies what a task has for the query heads of one of its `tokens`, `[shared heads][tokens, features]`, to their columns
    /// in the token's row.
    fn put_queries(&self, of_task: &[f32], (key_head, tokens): (usize, usize), token: usize, row: &mut [f32]) {
        let (f, shared) = (self.features, self.shared());
        for local in 0..shared {
            let from = head_row(of_task, local * tokens + token, f);
            head_mut(row, key_head * shared + local, f).copy_from_slice(from);
        }
    }
}

/// Row `index` of `[rows, features]`.
fn head_row(rows: &[f32], index: usize, features: usize) -> &[f32] {
    &rows[index * features..][..features]
}

/// Head `index` of a token's heads.
fn head_mut(row: &mut [f32], index: usize, features: usize) -> &mut [f32] {
    &mut row[index * features..][..features]
}

/// Calls `write` with every row of `rows`, `[tokens, width]`: the index of its segment, that of its token within the
/// segment, and the row.
///
/// # Panics
/// If the segments are not all tokens in order: a bug of the caller.
fn for_each_row(
    segments: &[AttentionSegment],
    width: usize,
    rows: &mut [f32],
    write: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    let (mut rest, mut start, mut parts) = (rows, 0, Vec::with_capacity(segments.len()));
    for segment in segments {
        assert_eq!(segment.queries.start, start, "segments in order");
        let (own, others) = rest.split_at_mut(segment.queries.len() * width);
        parts.push(own);
        (rest, start) = (others, segment.queries.end);
    }
    assert!(rest.is_empty(), "segments of all tokens");
    parts.into_par_iter().enumerate().for_each(|(segment, rows)| {
        let rows = rows.par_chunks_exact_mut(width).with_min_len(BLOCK).enumerate();
        rows.for_each(|(token, row)| write(segment, token, row));
    });
}

fn blocks(queries: usize) -> impl Iterator<Item = Range<usize>> {
    (0..queries).step_by(BLOCK).map(move |start| start..(start + BLOCK).min(queries))
}

/// Gathers and rotates one key head of a segment that attends to itself.
fn self_task(
    heads: &AttentionHeads,
    layout: &AttentionLayout,
    qkv: &[f32],
    (segment, key_head): (&AttentionSegment, usize),
) -> HeadTask {
    let AttentionHeads { queries, keys, features: f, .. } = *heads;
    let stride = heads.fused_width();
    let head = |index: usize| {
        let rows = Strided { data: qkv, stride, start: index * f };
        rows.gather(segment.queries.clone(), f)
    };
    let rotate = |values: &mut [f32]| {
        for (token, head) in segment.queries.clone().zip(values.chunks_exact_mut(f)) {
            layout.rope.rotate(token, head);
        }
    };
    let mut q = Vec::with_capacity(heads.shared() * segment.queries.len() * f);
    for local in 0..heads.shared() {
        let mut one = head(key_head * heads.shared() + local);
        rotate(&mut one);
        q.extend(one);
    }
    let (mut k, v) = (head(queries + key_head), head(queries + keys + key_head));
    rotate(&mut k);
    let tokens = segment.queries.len();
    HeadTask { head: key_head, queries: tokens, keys: tokens, q, k, v, bias: Vec::new(), bias_trains: false }
}

/// Gathers one key head of a segment whose keys are other tokens.
fn cross_task(heads: &AttentionHeads, [q, kv]: [&[f32]; 2], segment: &AttentionSegment, key_head: usize) -> HeadTask {
    let (f, width) = (heads.features, heads.key_width());
    let tokens = || segment.keys.iter().cloned().flatten();
    let of = |first: usize| Strided { data: kv, stride: 2 * width, start: first + key_head * f }.gather(tokens(), f);
    HeadTask {
        head: key_head,
        queries: segment.queries.len(),
        keys: tokens().count(),
        q: of_queries(heads, q, segment, key_head),
        k: of(0),
        v: of(width),
        bias: Vec::new(),
        bias_trains: false,
    }
}

/// Rotates gradients of a segment's heads back.
fn rotate_back(heads: &AttentionHeads, layout: &AttentionLayout, segment: &AttentionSegment, values: &mut [f32]) {
    // `chunks_exact_mut` panics on a size of zero, and a sequence may have no token.
    for head in values.chunks_exact_mut((segment.queries.len() * heads.features).max(1)) {
        for (token, head) in segment.queries.clone().zip(head.chunks_exact_mut(heads.features)) {
            layout.rope.rotate_back(token, head);
        }
    }
}

/// A task's part of queries or of the output's gradient, `[tokens, queries * features]`: `[shared heads][queries, features]`.
fn of_queries(heads: &AttentionHeads, rows: &[f32], segment: &AttentionSegment, key_head: usize) -> Vec<f32> {
    let (f, shared) = (heads.features, heads.shared());
    let head = |local| {
        let rows = Strided { data: rows, stride: heads.queries * f, start: (key_head * shared + local) * f };
        rows.gather(segment.queries.clone(), f)
    };
    (0..shared).map(head).collect::<Vec<_>>().concat()
}
