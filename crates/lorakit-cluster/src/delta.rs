//! Inner products of deltas `s B A`, of any ranks, by two matrix products per module.
//!
//! With all experts' A stacked by rows, `[R, in]`, and all s B' likewise, `[R, out]`, where R is the sum of the
//! ranks, the products `A A'` and `B' B` hold every pair's r1 x r2 blocks, and
//! `<s1 B1 A1, s2 B2 A2> = sum((A1 A2') * (s1 s2 B1' B2))`, elementwise. Modules that share one A share its product.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use lorakit_adapter::Adapter;
use rayon::prelude::*;

use crate::flat::mirror;
use crate::layout::{Layout, Tie};
use crate::{Experts, Result};

/// How many bytes of stacked factors are in memory at once, unless one tie alone needs more.
const GROUP_BYTES: usize = 704 << 20;

/// About how many stacked rows one product takes: large enough for the matrix product, small enough that the
/// blocks above the diagonal, which nobody needs, are little.
const BLOCK_ROWS: usize = 256;

/// The inner products `[n, n]` of the experts' deltas.
pub(crate) fn gram(experts: &Experts) -> Result<Vec<f64>> {
    let layout = Layout::of(experts)?;
    let n = experts.len();
    let mut sum = vec![0f64; n * n];
    for ties in groups(&layout.ties) {
        let stacks = stacks(experts, ties)?;
        add_products(&mut sum, n, &stacks);
    }
    mirror(&mut sum, n);
    Ok(sum)
}

/// Consecutive ties whose stacked factors fit into memory together.
fn groups(ties: &[Tie]) -> impl Iterator<Item = &[Tie]> {
    let mut filled = 0;
    ties.chunk_by(move |tie, next| {
        filled += bytes(tie);
        let fits = filled + bytes(next) <= GROUP_BYTES;
        filled = if fits { filled } else { 0 };
        fits
    })
}

fn bytes(tie: &Tie) -> usize {
    tie.ranks.iter().sum::<usize>() * (tie.input() + tie.output()) * size_of::<f32>()
}

/// The factors of one tie, of all experts.
struct Stack {
    input: usize,
    output: usize,
    /// Where each expert's rows lie; empty where it lacks these modules.
    rows: Vec<Range<usize>>,
    /// Every expert's A, `[R, in]`.
    a: Vec<f32>,
    /// Every expert's s B', `[R, out]`, the modules of the tie side by side.
    b: Vec<f32>,
}

impl Stack {
    fn of(tie: &Tie) -> Self {
        let mut total = 0;
        let rows = tie.ranks.iter().map(|rank| {
            total += rank;
            total - rank..total
        });
        let rows = rows.collect();
        let (input, output) = (tie.input(), tie.output());
        Self { input, output, rows, a: vec![0.0; total * input], b: vec![0.0; total * output] }
    }

    fn a(&self, rows: &Range<usize>) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.a[rows.start * self.input..rows.end * self.input], rows.len(), self.input)
    }

    fn b(&self, rows: &Range<usize>) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.b[rows.start * self.output..rows.end * self.output], rows.len(), self.output)
    }

    /// The rows of consecutive experts.
    fn span(&self, experts: &Range<usize>) -> Range<usize> {
        self.rows[experts.start].start..self.rows[experts.end - 1].end
    }
}

/// The place of one expert's factors in a stack.
struct Slot<'a> {
    tie: &'a Tie,
    a: &'a mut [f32],
    b: &'a mut [f32],
}

/// Looks at every expert once and copies its factors of these ties.
fn stacks(experts: &Experts, ties: &[Tie]) -> Result<Vec<Stack>> {
    let mut stacks: Vec<Stack> = ties.iter().map(Stack::of).collect();
    let mut slots: Vec<Vec<Slot>> = (0..experts.len()).map(|_| Vec::with_capacity(ties.len())).collect();
    for (tie, stack) in ties.iter().zip(&mut stacks) {
        let (mut a, mut b) = (stack.a.as_mut_slice(), stack.b.as_mut_slice());
        for (slots, rank) in slots.iter_mut().zip(&tie.ranks).filter(|(_, rank)| **rank > 0) {
            let (a_here, a_rest) = std::mem::take(&mut a).split_at_mut(rank * stack.input);
            let (b_here, b_rest) = std::mem::take(&mut b).split_at_mut(rank * stack.output);
            (a, b) = (a_rest, b_rest);
            slots.push(Slot { tie, a: a_here, b: b_here });
        }
    }
    slots.into_par_iter().enumerate().try_for_each(|(index, slots)| {
        experts.look(index, |adapter| slots.into_iter().for_each(|slot| slot.fill(adapter)))
    })?;
    Ok(stacks)
}

impl Slot<'_> {
    fn fill(self, adapter: &Adapter) {
        // The layout found these modules, with these shapes, in this expert.
        let modules = adapter.modules();
        self.a.copy_from_slice(&modules[self.tie.first()].a().values());
        let mut column = 0;
        for (module, width) in &self.tie.modules {
            let update = &modules[module];
            let (scale, rank) = (update.scale() as f32, update.rank());
            let b = update.b().values();
            for (row, stacked) in self.b.chunks_exact_mut(self.tie.output()).enumerate() {
                let values = b[row..].iter().step_by(rank).map(|value| scale * value);
                stacked[column..column + width.output].iter_mut().zip(values).for_each(|(to, from)| *to = from);
            }
            column += width.output;
        }
    }
}

/// One product: the pairs of two blocks of experts, in one stack.
struct Task<'a> {
    stack: &'a Stack,
    left: Range<usize>,
    right: Range<usize>,
}

/// Adds the products of every pair of experts, its lower triangle at least, to `sum`.
fn add_products(sum: &mut [f64], n: usize, stacks: &[Stack]) {
    let tasks: Vec<Task> = stacks.iter().flat_map(|stack| tasks(stack, n)).collect();
    // A wave bounds how many blocks wait to be added; each pair is summed in the order of the stacks in any case.
    for wave in tasks.chunks(16 * rayon::current_num_threads()) {
        let blocks: Vec<Vec<f64>> = wave.par_iter().map(Task::products).collect();
        for (task, block) in wave.iter().zip(blocks) {
            for (i, row) in task.left.clone().zip(block.chunks_exact(task.right.len())) {
                let sums = &mut sum[i * n..][task.right.clone()];
                sums.iter_mut().zip(row).for_each(|(sum, product)| *sum += product);
            }
        }
    }
}

/// The pairs of blocks on and below the diagonal.
fn tasks(stack: &Stack, n: usize) -> impl Iterator<Item = Task<'_>> {
    let rank = stack.rows.iter().map(ExactSizeIterator::len).max().unwrap_or(1);
    let size = (BLOCK_ROWS / rank.max(1)).max(1);
    let block = move |start: usize| start..(start + size).min(n);
    let pairs = (0..n).step_by(size).flat_map(move |left| (0..=left).step_by(size).map(move |right| (left, right)));
    pairs.map(move |(left, right)| Task { stack, left: block(left), right: block(right) })
}

impl Task<'_> {
    /// The inner products `[left, right]`.
    fn products(&self) -> Vec<f64> {
        let (left, right) = (self.stack.span(&self.left), self.stack.span(&self.right));
        let a = product(self.stack.a(&left), self.stack.a(&right));
        let b = product(self.stack.b(&left), self.stack.b(&right));
        let pairs = self.left.clone().flat_map(|i| self.right.clone().map(move |j| (i, j)));
        let inside = |rows: &Range<usize>, from: usize| rows.start - from..rows.end - from;
        pairs
            .map(|(i, j)| {
                let rows = inside(&self.stack.rows[i], left.start);
                let columns = inside(&self.stack.rows[j], right.start);
                contract(&a, &b, rows, columns)
            })
            .collect()
    }
}

/// `x y'` in f32.
fn product(x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Mat<f32> {
    let mut product = Mat::zeros(x.nrows(), y.nrows());
    matmul(&mut product, Accum::Replace, x, y.transpose(), 1.0, Par::Seq);
    product
}

/// The sum of `a * b`, elementwise, over one block.
fn contract(a: &Mat<f32>, b: &Mat<f32>, rows: Range<usize>, columns: Range<usize>) -> f64 {
    let entries = columns.flat_map(|column| rows.clone().map(move |row| (row, column)));
    entries.map(|at| f64::from(a[at]) * f64::from(b[at])).sum()
}
