//! Inner products of deltas `s B A` of any ranks, by two matrix products for each module.
//!
//! All experts' A are stacked by rows, `[R, in]`, and all s B' likewise, `[R, out]`, where R is the sum of the ranks. The
//! products `A A'` and `B' B` then contain a block `[r1, r2]` for every pair, and with elementwise products
//! `<s1 B1 A1, s2 B2 A2> = sum((A1 A2') * (s1 s2 B1' B2))`. Modules that share one A share its product.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use lorakit_adapter::Adapter;
use rayon::prelude::*;

use crate::error::Result;
use crate::expert_set::ExpertSet;
use crate::gram::module_layout::{ModuleLayout, TiedModules};
use crate::gram::triangle::mirror_lower;

/// The largest size of the stacked factors in memory, in bytes, unless one group of tied modules alone needs more.
const GROUP_BYTES: usize = 704 << 20;

/// About how many stacked rows one product takes: enough for an efficient matrix product, few enough that little is computed
/// above the diagonal.
const BLOCK_ROWS: usize = 256;

/// The inner products `[n, n]` of the experts' deltas.
pub(crate) fn gram(experts: &ExpertSet) -> Result<Vec<f64>> {
    let layout = ModuleLayout::of(experts)?;
    let n = experts.len();
    let mut sum = vec![0f64; n * n];
    for modules in fitting_groups(&layout.groups) {
        let stacks = stacks(experts, modules)?;
        add_products(&mut sum, n, &stacks);
    }
    mirror_lower(&mut sum, n);
    Ok(sum)
}

/// Consecutive groups of tied modules whose stacked factors fit in memory together.
fn fitting_groups(groups: &[TiedModules]) -> impl Iterator<Item = &[TiedModules]> {
    let mut filled = 0;
    groups.chunk_by(move |tied, next| {
        filled += bytes(tied);
        let fits = filled + bytes(next) <= GROUP_BYTES;
        filled = if fits { filled } else { 0 };
        fits
    })
}

fn bytes(tied: &TiedModules) -> usize {
    tied.ranks.iter().sum::<usize>() * (tied.input() + tied.output()) * size_of::<f32>()
}

/// The factors of all experts for one group of tied modules.
struct Stack {
    input: usize,
    output: usize,
    /// The rows of each expert; empty if it lacks these modules.
    rows: Vec<Range<usize>>,
    /// Every expert's A, `[R, in]`.
    a: Vec<f32>,
    /// Every expert's s B', `[R, out]`, the tied modules side by side.
    b: Vec<f32>,
}

impl Stack {
    fn of(tied: &TiedModules) -> Self {
        let mut total = 0;
        let rows = tied.ranks.iter().map(|rank| {
            total += rank;
            total - rank..total
        });
        let rows = rows.collect();
        let (input, output) = (tied.input(), tied.output());
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

/// One expert's part of a stack.
struct StackSlot<'a> {
    tied: &'a TiedModules,
    a: &'a mut [f32],
    b: &'a mut [f32],
}

/// Opens every expert once and copies its factors of these modules.
fn stacks(experts: &ExpertSet, groups: &[TiedModules]) -> Result<Vec<Stack>> {
    let mut stacks: Vec<Stack> = groups.iter().map(Stack::of).collect();
    let mut slots: Vec<Vec<StackSlot>> = (0..experts.len()).map(|_| Vec::with_capacity(groups.len())).collect();
    for (tied, stack) in groups.iter().zip(&mut stacks) {
        let (mut a, mut b) = (stack.a.as_mut_slice(), stack.b.as_mut_slice());
        for (slots, rank) in slots.iter_mut().zip(&tied.ranks).filter(|(_, rank)| **rank > 0) {
            let (a_here, a_rest) = std::mem::take(&mut a).split_at_mut(rank * stack.input);
            let (b_here, b_rest) = std::mem::take(&mut b).split_at_mut(rank * stack.output);
            (a, b) = (a_rest, b_rest);
            slots.push(StackSlot { tied, a: a_here, b: b_here });
        }
    }
    slots.into_par_iter().enumerate().try_for_each(|(index, slots)| {
        experts.with_adapter(index, |adapter| slots.into_iter().for_each(|slot| slot.fill(adapter)))
    })?;
    Ok(stacks)
}

impl StackSlot<'_> {
    fn fill(self, adapter: &Adapter) {
        // The layout found these modules, with these shapes, in this expert.
        let modules = adapter.modules();
        self.a.copy_from_slice(&modules[self.tied.first()].a().values());
        let mut column = 0;
        for (module, width) in &self.tied.modules {
            let update = &modules[module];
            let (scale, rank) = (update.scale() as f32, update.rank());
            let b = update.b().values();
            for (row, stacked) in self.b.chunks_exact_mut(self.tied.output()).enumerate() {
                let values = b[row..].iter().step_by(rank).map(|value| scale * value);
                stacked[column..column + width.output].iter_mut().zip(values).for_each(|(to, from)| *to = from);
            }
            column += width.output;
        }
    }
}

/// One product: the pairs of two blocks of experts, in one stack.
struct BlockPair<'a> {
    stack: &'a Stack,
    left: Range<usize>,
    right: Range<usize>,
}

/// Adds the products of every pair of experts, at least the lower triangle, to `sum`.
fn add_products(sum: &mut [f64], n: usize, stacks: &[Stack]) {
    let pairs: Vec<BlockPair> = stacks.iter().flat_map(|stack| block_pairs(stack, n)).collect();
    // Waves bound how many blocks are in memory; each pair is summed in the order of the stacks in any case.
    for wave in pairs.chunks(16 * rayon::current_num_threads()) {
        let blocks: Vec<Vec<f64>> = wave.par_iter().map(BlockPair::products).collect();
        for (pair, block) in wave.iter().zip(blocks) {
            for (i, row) in pair.left.clone().zip(block.chunks_exact(pair.right.len())) {
                let sums = &mut sum[i * n..][pair.right.clone()];
                sums.iter_mut().zip(row).for_each(|(sum, product)| *sum += product);
            }
        }
    }
}

/// The pairs of blocks on and below the diagonal.
fn block_pairs(stack: &Stack, n: usize) -> impl Iterator<Item = BlockPair<'_>> {
    let rank = stack.rows.iter().map(ExactSizeIterator::len).max().unwrap_or(1);
    let size = (BLOCK_ROWS / rank.max(1)).max(1);
    let block = move |start: usize| start..(start + size).min(n);
    let pairs = (0..n).step_by(size).flat_map(move |left| (0..=left).step_by(size).map(move |right| (left, right)));
    pairs.map(move |(left, right)| BlockPair { stack, left: block(left), right: block(right) })
}

impl BlockPair<'_> {
    /// The inner products `[left, right]`.
    fn products(&self) -> Vec<f64> {
        let (left, right) = (self.stack.span(&self.left), self.stack.span(&self.right));
        let a = product(self.stack.a(&left), self.stack.a(&right));
        let b = product(self.stack.b(&left), self.stack.b(&right));
        let inside = |rows: &Range<usize>, from: usize| rows.start - from..rows.end - from;
        let rows: Vec<Range<usize>> =
            self.stack.rows[self.left.clone()].iter().map(|rows| inside(rows, left.start)).collect();
        let mut products = vec![0.0; self.left.len() * self.right.len()];
        let mut sums = vec![0.0; rows.len()];
        let mut entries = vec![0.0; left.len()];
        for (at, columns) in self.stack.rows[self.right.clone()].iter().enumerate() {
            sums.fill(0.0);
            for column in inside(columns, right.start) {
                multiply(a.col_as_slice(column), b.col_as_slice(column), &mut entries);
                add_parts(&entries, &rows, &mut sums);
            }
            products[at..].iter_mut().step_by(self.right.len()).zip(&sums).for_each(|(to, sum)| *to = *sum);
        }
        products
    }
}

/// `x y'` in f32.
fn product(x: MatRef<'_, f32>, y: MatRef<'_, f32>) -> Mat<f32> {
    let mut product = Mat::zeros(x.nrows(), y.nrows());
    matmul(&mut product, Accum::Replace, x, y.transpose(), 1.0, Par::Seq);
    product
}

/// `a * b`, elementwise, in f64. Apart from the sums, whose order is given, it compiles to vector instructions.
fn multiply(a: &[f32], b: &[f32], entries: &mut [f64]) {
    for ((entry, a), b) in entries.iter_mut().zip(a).zip(b) {
        *entry = f64::from(*a) * f64::from(*b);
    }
}

/// Adds the entries in each of `rows` to its sum, one after the other.
fn add_parts(entries: &[f64], rows: &[Range<usize>], sums: &mut [f64]) {
    for (sum, rows) in sums.iter_mut().zip(rows) {
        *sum = entries[rows.clone()].iter().fold(*sum, |sum, entry| sum + entry);
    }
}

#[cfg(test)]
mod tests {
    use lorakit_format::rng::CounterRng;

    use super::*;

    fn random(count: usize, rng: &mut CounterRng) -> Vec<f32> {
        (0..count).map(|_| rng.uniform() - 0.5).collect()
    }

    /// The sum of `a * b`, elementwise, over one block, one column after the other.
    fn contraction(a: &Mat<f32>, b: &Mat<f32>, rows: Range<usize>, columns: Range<usize>) -> f64 {
        let entries = columns.flat_map(|column| rows.clone().map(move |row| (row, column)));
        entries.fold(0.0, |sum, at| sum + f64::from(a[at]) * f64::from(b[at]))
    }

    #[test]
    fn every_pair_is_summed_column_by_column() {
        let mut rng = CounterRng::seeded(7, 0);
        let mut total = 0;
        let rows: Vec<Range<usize>> = (0..50)
            .map(|at| {
                total += [4, 1, 0, 9, 4][at % 5];
                total - [4, 1, 0, 9, 4][at % 5]..total
            })
            .collect();
        let (input, output) = (24, 17);
        let (a, b) = (random(total * input, &mut rng), random(total * output, &mut rng));
        let stack = Stack { input, output, rows, a, b };
        for (left, right) in [(20..50, 1..19), (3..8, 3..8), (40..41, 0..50)] {
            let (from, to) = (stack.span(&left), stack.span(&right));
            let products_a = product(stack.a(&from), stack.a(&to));
            let products_b = product(stack.b(&from), stack.b(&to));
            let found = BlockPair { stack: &stack, left: left.clone(), right: right.clone() }.products();
            let pairs = left.flat_map(|i| right.clone().map(move |j| (i, j)));
            let expected = pairs.map(|(i, j)| {
                let (rows, columns) = (&stack.rows[i], &stack.rows[j]);
                let rows = rows.start - from.start..rows.end - from.start;
                contraction(&products_a, &products_b, rows, columns.start - to.start..columns.end - to.start)
            });
            let bits = |values: &mut dyn Iterator<Item = f64>| values.map(f64::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(&mut found.into_iter()), bits(&mut expected.into_iter()));
        }
    }
}
