//! Attention of heads so narrow that a matrix product would spend its time on getting ready.
//!
//! As many queries as a vector has lanes stand side by side, each feature a vector, and so all that softmax does along
//! the keys is done for all of them at once, without a sum across lanes. On the way back the keys take their turn as
//! lanes: the weights are made again there, which is cheaper than turning them.

use crate::attention::{Heads, Task};
use crate::softmax::exp_of_lanes;
use pulp::bytemuck::{cast_slice, cast_slice_mut};
use pulp::{Simd, WithSimd};
use std::ops::Range;

/// Features that are worked on at a time; heads have a multiple of them.
const FEATURES: usize = 8;

/// The widest heads that are faster without matrix products.
const WIDEST: usize = 16;

/// Whether heads of so many features are to be attended to here.
pub(crate) fn is_narrow(features: usize) -> bool {
    features <= WIDEST && features.is_multiple_of(FEATURES)
}

/// The outputs of a task, `[shared heads][queries, features]`.
pub(crate) struct Attend<'a> {
    pub(crate) heads: &'a Heads,
    pub(crate) task: &'a Task,
}

/// The gradients of a task's q, k and v from that of its outputs, all in the task's own form.
pub(crate) struct AttendBackward<'a> {
    pub(crate) heads: &'a Heads,
    pub(crate) task: &'a Task,
    pub(crate) dout: &'a [f32],
}

/// Rows `[rows, features]`, of which some are turned to stand side by side.
#[derive(Clone, Copy)]
struct Rows<'a> {
    values: &'a [f32],
    features: usize,
}

impl<'a> Rows<'a> {
    #[inline(always)]
    fn at(&self, rows: Range<usize>) -> &'a [f32] {
        &self.values[rows.start * self.features..rows.end * self.features]
    }

    /// Sets `turned`, `[features]`, to the rows of `block`, at most as many as there are lanes; lanes that are left are
    /// zero.
    #[inline(always)]
    fn turn<S: Simd>(&self, simd: S, block: Range<usize>, turned: &mut [S::f32s]) {
        if block.len() < S::F32_LANES {
            turned.fill(simd.splat_f32s(0.0));
        }
        let (rows, values): (&[f32], &mut [f32]) = (self.at(block), cast_slice_mut(turned));
        for (feature, lanes) in values.chunks_exact_mut(S::F32_LANES).enumerate() {
            let column = rows.iter().skip(feature).step_by(self.features);
            lanes.iter_mut().zip(column).for_each(|(lane, &value)| *lane = value);
        }
    }
}

/// Writes the first lanes of `turned`, `[features]`, times `scale` to the rows of `to`, `[rows, features]`.
#[inline(always)]
fn turn_back<S: Simd>(turned: &[S::f32s], scale: f32, to: &mut [f32]) {
    let values: &[f32] = cast_slice(turned);
    for (feature, lanes) in values.chunks_exact(S::F32_LANES).enumerate() {
        let column = to.iter_mut().skip(feature).step_by(turned.len());
        column.zip(lanes).for_each(|(value, &lane)| *value = scale * lane);
    }
}

/// The inner products of each of `rows`, `[rows, features]`, with every lane of `turned`, `[features]`.
#[inline(always)]
fn inner_products<S: Simd>(simd: S, rows: &[f32], turned: &[S::f32s], products: &mut [S::f32s]) {
    let blocks = turned.as_chunks::<FEATURES>().0;
    for (number, &lanes) in blocks.iter().enumerate() {
        let rows = rows.as_chunks::<FEATURES>().0.chunks_exact(blocks.len());
        for (product, row) in products.iter_mut().zip(rows) {
            // Two sums, so that no addition waits for the one before.
            let mut even = if number == 0 { simd.splat_f32s(0.0) } else { *product };
            let mut odd = simd.splat_f32s(0.0);
            let values = &row[number];
            for feature in 0..FEATURES / 2 {
                even = simd.mul_add_e_f32s(simd.splat_f32s(values[2 * feature]), lanes[2 * feature], even);
                odd = simd.mul_add_e_f32s(simd.splat_f32s(values[2 * feature + 1]), lanes[2 * feature + 1], odd);
            }
            *product = simd.add_f32s(even, odd);
        }
    }
}

/// Adds to `sums`, `[features]`, the `rows`, `[rows, features]`, each at its weight in every lane.
#[inline(always)]
fn add_weighted<S: Simd>(simd: S, weights: &[S::f32s], rows: &[f32], sums: &mut [S::f32s]) {
    let blocks = sums.as_chunks_mut::<FEATURES>().0;
    let count = blocks.len();
    for (number, block) in blocks.iter_mut().enumerate() {
        let mut sum = *block;
        for (&weight, row) in weights.iter().zip(rows.as_chunks::<FEATURES>().0.chunks_exact(count)) {
            let values = &row[number];
            for feature in 0..FEATURES {
                sum[feature] = simd.mul_add_e_f32s(weight, simd.splat_f32s(values[feature]), sum[feature]);
            }
        }
        *block = sum;
    }
}

/// The softmax of a block of queries: the weights of all in every key that any of them sees.
struct Block<S: Simd> {
    seen: Range<usize>,
    /// `[seen]`.
    weights: Vec<S::f32s>,
    /// Each query's largest score, and the inverse of its sum.
    largest: S::f32s,
    inverse: S::f32s,
}

/// What is reused from block to block of one task.
struct Scratch<S: Simd> {
    /// `[features]`.
    turned: Vec<S::f32s>,
    /// `[features]`.
    sums: Vec<S::f32s>,
    products: Vec<S::f32s>,
}

impl<S: Simd> Scratch<S> {
    #[inline(always)]
    fn new(simd: S, features: usize) -> Self {
        let zero = simd.splat_f32s(0.0);
        Self { turned: vec![zero; features], sums: vec![zero; features], products: Vec::new() }
    }
}

impl<S: Simd> Block<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        let zero = simd.splat_f32s(0.0);
        Self { seen: 0..0, weights: Vec::new(), largest: zero, inverse: zero }
    }

    /// Makes the weights of `queries`, whose rows `q` are scaled already.
    #[inline(always)]
    fn make(&mut self, simd: S, sight: &Sight, q: Rows, queries: Range<usize>, turned: &mut [S::f32s]) {
        let (first, last) = (sight.of(queries.start), sight.of(queries.end - 1));
        self.seen = first.start..last.end;
        q.turn(simd, queries.clone(), turned);
        let zero = simd.splat_f32s(0.0);
        self.weights.resize(self.seen.len(), zero);
        let keys = Rows { values: &sight.task.k, features: q.features };
        inner_products(simd, keys.at(self.seen.clone()), turned, &mut self.weights);
        self.hide(simd, sight, &first, &last, f32::NEG_INFINITY);
        let mut largest = simd.splat_f32s(f32::NEG_INFINITY);
        for &scores in &self.weights {
            largest = simd.max_f32s(largest, scores);
        }
        let mut sum = zero;
        for weights in &mut self.weights {
            *weights = exp_of_lanes(simd, simd.sub_f32s(*weights, largest));
        }
        self.hide(simd, sight, &first, &last, 0.0);
        for &weights in &self.weights {
            sum = simd.add_f32s(sum, weights);
        }
        self.largest = largest;
        self.inverse = simd.div_f32s(simd.splat_f32s(1.0), sum);
        for weights in &mut self.weights {
            *weights = simd.mul_f32s(*weights, self.inverse);
        }
    }
}

impl<S: Simd> Block<S> {
    /// Sets the weights of keys that a query does not see to `hidden`; `first` and `last` are what the first query sees,
    /// and the last.
    #[inline(always)]
    fn hide(&mut self, simd: S, sight: &Sight, first: &Range<usize>, last: &Range<usize>, hidden: f32) {
        let (hidden, numbers) = (simd.splat_f32s(hidden), numbers(simd));
        let start = self.seen.start;
        // What all see lies between the start of the last and the end of the first.
        for keys in [start..last.start, first.end.max(last.start)..last.end] {
            // Query after query sees one key more, and within a window loses one.
            let mut from = keys.start as f32 + 1.0 - first.end as f32;
            let window = sight.heads.window.map_or(f32::INFINITY, |window| window as f32);
            for weights in &mut self.weights[keys.start - start..][..keys.len()] {
                *weights = within(simd, numbers, [from, from + window], *weights, hidden);
                from += 1.0;
            }
        }
    }
}

/// Which keys the queries of a task see.
struct Sight<'a> {
    heads: &'a Heads,
    task: &'a Task,
}

impl Sight<'_> {
    #[inline(always)]
    fn of(&self, query: usize) -> Range<usize> {
        self.heads.visible(query, self.task.queries, self.task.keys)
    }
}

/// `values` where a lane's number is at least `from` and less than `to`, and `hidden` in the others.
#[inline(always)]
fn within<S: Simd>(simd: S, numbers: S::f32s, [from, to]: [f32; 2], values: S::f32s, hidden: S::f32s) -> S::f32s {
    let values = simd.select_f32s(simd.less_than_f32s(numbers, simd.splat_f32s(from)), hidden, values);
    simd.select_f32s(simd.less_than_f32s(numbers, simd.splat_f32s(to)), values, hidden)
}

/// The number of each lane.
#[inline(always)]
fn numbers<S: Simd>(simd: S) -> S::f32s {
    let mut numbers = simd.splat_f32s(0.0);
    let lanes: &mut [f32] = cast_slice_mut(std::slice::from_mut(&mut numbers));
    lanes.iter_mut().enumerate().for_each(|(number, lane)| *lane = number as f32);
    numbers
}

fn blocks<S: Simd>(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(S::F32_LANES).map(move |start| start..(start + S::F32_LANES).min(count))
}

/// The rows of a task's heads, times the scale of the scores.
#[inline(always)]
fn scaled(q: &[f32], features: usize) -> Vec<f32> {
    let scale = 1.0 / (features as f32).sqrt();
    q.iter().map(|q| q * scale).collect()
}

impl WithSimd for Attend<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { heads, task } = self;
        let (features, sight) = (heads.features, Sight { heads, task });
        let (q, mut out) = (scaled(&task.q, features), vec![0.0; task.q.len()]);
        let (mut block, mut scratch) = (Block::new(simd), Scratch::new(simd, features));
        let values = Rows { values: &task.v, features };
        // Chunks of nothing panic, and a row may have no query.
        let head = (task.queries * features).max(1);
        for (q, out) in q.chunks_exact(head).zip(out.chunks_exact_mut(head)) {
            for queries in blocks::<S>(task.queries) {
                let rows = queries.start * features..queries.end * features;
                block.make(simd, &sight, Rows { values: q, features }, queries, &mut scratch.turned);
                scratch.sums.fill(simd.splat_f32s(0.0));
                add_weighted(simd, &block.weights, values.at(block.seen.clone()), &mut scratch.sums);
                turn_back::<S>(&scratch.sums, 1.0, &mut out[rows]);
            }
        }
        out
    }
}

/// What one head's queries leave for the keys' turn.
#[derive(Default)]
struct Left {
    largest: Vec<f32>,
    inverse: Vec<f32>,
    /// `rowsum(P dP)`.
    along: Vec<f32>,
}

/// One head's queries, scaled, and the gradients of its outputs.
#[derive(Clone, Copy)]
struct Head<'a> {
    q: Rows<'a>,
    dout: Rows<'a>,
}

impl AttendBackward<'_> {
    fn sight(&self) -> Sight<'_> {
        Sight { heads: self.heads, task: self.task }
    }

    /// `dQ` of one head, by blocks of queries.
    #[inline(always)]
    fn by_queries<S: Simd>(&self, simd: S, head: Head, dq: &mut [f32], scratch: &mut Scratch<S>) -> Left {
        let features = head.q.features;
        let (keys, values) = (Rows { values: &self.task.k, features }, Rows { values: &self.task.v, features });
        let (zero, scale) = (simd.splat_f32s(0.0), 1.0 / (features as f32).sqrt());
        let (mut block, mut left) = (Block::new(simd), Left::default());
        for queries in blocks::<S>(self.task.queries) {
            block.make(simd, &self.sight(), head.q, queries.clone(), &mut scratch.turned);
            head.dout.turn(simd, queries.clone(), &mut scratch.turned);
            scratch.products.resize(block.seen.len(), zero);
            inner_products(simd, values.at(block.seen.clone()), &scratch.turned, &mut scratch.products);
            let mut along = zero;
            for (&p, &dp) in block.weights.iter().zip(&scratch.products) {
                along = simd.mul_add_e_f32s(p, dp, along);
            }
            for (p, &dp) in block.weights.iter_mut().zip(&scratch.products) {
                *p = simd.mul_f32s(*p, simd.sub_f32s(dp, along));
            }
            scratch.sums.fill(zero);
            add_weighted(simd, &block.weights, keys.at(block.seen.clone()), &mut scratch.sums);
            turn_back::<S>(&scratch.sums, scale, &mut dq[queries.start * features..queries.end * features]);
            for (all, lanes) in
                [(&mut left.largest, &block.largest), (&mut left.inverse, &block.inverse), (&mut left.along, &along)]
            {
                all.extend_from_slice(&cast_slice(std::slice::from_ref(lanes))[..queries.len()]);
            }
        }
        left
    }

    /// Adds one head's part of `dK` and `dV`, by blocks of keys.
    #[inline(always)]
    fn by_keys<S: Simd>(
        &self,
        simd: S,
        head: Head,
        left: &Left,
        [dk, dv]: [&mut [S::f32s]; 2],
        scratch: &mut Scratch<S>,
    ) {
        let Task { queries, keys, k, v, .. } = self.task;
        let (features, sight) = (head.q.features, self.sight());
        let (zero, numbers) = (simd.splat_f32s(0.0), numbers(simd));
        let mut weights: Vec<S::f32s> = Vec::new();
        for (number, block) in blocks::<S>(*keys).enumerate() {
            let first = (0..*queries).take_while(|&query| sight.of(query).end <= block.start).count();
            let end = first + (first..*queries).take_while(|&query| sight.of(query).start < block.end).count();
            let seeing = first..end;
            weights.resize(seeing.len(), zero);
            Rows { values: k, features }.turn(simd, block.clone(), &mut scratch.turned);
            inner_products(simd, head.q.at(seeing.clone()), &scratch.turned, &mut weights);
            for (query, weights) in seeing.clone().zip(&mut weights) {
                let largest = simd.splat_f32s(left.largest[query]);
                let inverse = simd.splat_f32s(left.inverse[query]);
                *weights = simd.mul_f32s(exp_of_lanes(simd, simd.sub_f32s(*weights, largest)), inverse);
                let visible = sight.of(query);
                if visible.start > block.start || visible.end < block.end {
                    let lanes = [visible.start, visible.end].map(|key| key as f32 - block.start as f32);
                    *weights = within(simd, numbers, lanes, *weights, zero);
                }
            }
            let of_block = number * features..(number + 1) * features;
            add_weighted(simd, &weights, head.dout.at(seeing.clone()), &mut dv[of_block.clone()]);
            Rows { values: v, features }.turn(simd, block, &mut scratch.turned);
            scratch.products.resize(seeing.len(), zero);
            inner_products(simd, head.dout.at(seeing.clone()), &scratch.turned, &mut scratch.products);
            for ((query, weights), &dp) in seeing.clone().zip(&mut weights).zip(&scratch.products) {
                let along = simd.splat_f32s(left.along[query]);
                *weights = simd.mul_f32s(*weights, simd.sub_f32s(dp, along));
            }
            add_weighted(simd, &weights, head.q.at(seeing), &mut dk[of_block]);
        }
    }
}

impl WithSimd for AttendBackward<'_> {
    type Output = (Vec<f32>, Vec<f32>, Vec<f32>);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Self::Output {
        let Self { heads, task, dout } = self;
        let features = heads.features;
        let q = scaled(&task.q, features);
        let mut dq = vec![0.0; q.len()];
        let turned = vec![simd.splat_f32s(0.0); task.keys.div_ceil(S::F32_LANES) * features];
        let (mut dk, mut dv) = (turned.clone(), turned);
        let mut scratch = Scratch::new(simd, features);
        // Chunks of nothing panic, and a row may have no query.
        let head = (task.queries * features).max(1);
        for ((q, dout), dq) in q.chunks_exact(head).zip(dout.chunks_exact(head)).zip(dq.chunks_exact_mut(head)) {
            let head = Head { q: Rows { values: q, features }, dout: Rows { values: dout, features } };
            let left = self.by_queries(simd, head, dq, &mut scratch);
            self.by_keys(simd, head, &left, [&mut dk, &mut dv], &mut scratch);
        }
        let rows = |turned: Vec<S::f32s>| {
            let mut rows = vec![0.0; task.keys * features];
            for (rows, turned) in rows.chunks_mut(S::F32_LANES * features).zip(turned.chunks_exact(features)) {
                turn_back::<S>(turned, 1.0, rows);
            }
            rows
        };
        (dq, rows(dk), rows(dv))
    }
}
