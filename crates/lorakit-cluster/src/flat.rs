//! Inner products of flattened adapters, `parameters` and `change`, in bounded memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatRef, Par};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use rayon::prelude::*;

use crate::error::Cause;
use crate::layout::{Layout, Tie};
use crate::sparsify::threshold;
use crate::{Error, Experts, Result, Space};

/// How many bytes of the values of `experts` are in memory at once, as f32: a MiB of each, within bounds.
fn group_bytes(experts: usize) -> usize {
    (experts << 20).clamp(704 << 20, 2 << 30)
}

/// How many coordinates an f32 product sums before it is added up in f64. Fixed, so that results are.
const RUN: usize = 4096;

/// The inner products `[n, n]` of the experts' flattened values.
pub(crate) fn gram(experts: &Experts, space: Space, sparsity: f64) -> Result<Vec<f64>> {
    let line = Line::of(experts, space)?;
    let columns = group_bytes(experts.len()) / size_of::<f32>() / experts.len();
    gram_by_columns(experts, &line, sparsity, columns.next_multiple_of(RUN))
}

/// The same, with `columns` of the line in memory at once, a multiple of [`RUN`].
fn gram_by_columns(experts: &Experts, line: &Line, sparsity: f64, columns: usize) -> Result<Vec<f64>> {
    let n = experts.len();
    let mut thresholds = vec![None::<f32>; n];
    let mut sum = vec![0f64; n * n];
    let columns = columns.min(line.len);
    let mut rows = vec![0f32; n * columns];
    // A wave bounds how many products wait to be added.
    let wave = (4 * rayon::current_num_threads()).min(columns.div_ceil(RUN)).max(1);
    let mut products: Vec<Mat<f32>> = (0..wave).map(|_| Mat::zeros(n, n)).collect();
    for start in (0..line.len).step_by(columns.max(1)) {
        let range = start..(start + columns).min(line.len);
        let rows = &mut rows[..n * range.len()];
        let slots = rows.par_chunks_exact_mut(range.len()).zip(&mut thresholds).enumerate();
        slots.try_for_each(|(index, (row, dropped))| {
            experts.look(index, |adapter| {
                // Found once, in the first group, where it needs all of the expert.
                if start == 0 {
                    *dropped = threshold(|| line.values(adapter), sparsity);
                }
                line.copy(adapter, range.clone(), row);
                if let Some(dropped) = *dropped {
                    row.iter_mut().for_each(|value| *value = if value.abs() > dropped { *value } else { 0.0 });
                }
            })
        })?;
        add_products(&mut sum, MatRef::from_row_major_slice(rows, n, range.len()), &mut products);
    }
    mirror(&mut sum, n);
    Ok(sum)
}

/// Adds the lower triangle of `rows rows'` to `sum`, run by run: in parallel, and in the order of the runs however
/// many `products` there is room for.
fn add_products(sum: &mut [f64], rows: MatRef<'_, f32>, products: &mut [Mat<f32>]) {
    let n = rows.nrows();
    let runs: Vec<usize> = (0..rows.ncols()).step_by(RUN).collect();
    for wave in runs.chunks(products.len()) {
        let products = &mut products[..wave.len()];
        products.par_iter_mut().zip(wave).for_each(|(product, &start)| {
            lower_products(rows.subcols(start, RUN.min(rows.ncols() - start)), product);
        });
        sum.par_chunks_exact_mut(n).enumerate().for_each(|(i, sum)| {
            for product in &*products {
                sum[..=i].iter_mut().enumerate().for_each(|(j, sum)| *sum += f64::from(product[(i, j)]));
            }
        });
    }
}

/// The lower triangle of `x x'`; what is above it is not defined.
fn lower_products(x: MatRef<'_, f32>, product: &mut Mat<f32>) {
    let (lower, full) = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
    matmul(product, lower, Accum::Replace, x, full, x.transpose(), full, 1.0, Par::Seq);
}

/// Copies the lower triangle of `[n, n]` to the upper one.
pub(crate) fn mirror(values: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            values[j * n + i] = values[i * n + j];
        }
    }
}

/// The coordinates of all experts, laid end to end: of each tie the A once, then each module's B.
struct Line {
    parts: Vec<Part>,
    len: usize,
    /// Per module, the A that training started from; empty where parameters are taken as they are.
    start: BTreeMap<String, Matrix>,
}

/// One matrix of an adapter and its place on the line.
struct Part {
    module: String,
    side: Side,
    range: Range<usize>,
}

#[derive(Clone, Copy)]
enum Side {
    A,
    B,
}

impl Line {
    fn of(experts: &Experts, space: Space) -> Result<Self> {
        let layout = Layout::of(experts)?;
        layout.ensure_aligned(experts.names(), space)?;
        let mut line = Self { parts: Vec::new(), len: 0, start: BTreeMap::new() };
        for tie in &layout.ties {
            line.push(tie.first(), Side::A, tie.ranks[0] * tie.input());
            for (module, width) in &tie.modules {
                line.push(module, Side::B, tie.ranks[0] * width.output);
            }
        }
        if space == Space::Change {
            line.start = layout.ties.iter().map(|tie| start(experts, tie)).collect::<Result<_>>()?;
        }
        Ok(line)
    }

    fn push(&mut self, module: &str, side: Side, len: usize) {
        self.parts.push(Part { module: module.to_owned(), side, range: self.len..self.len + len });
        self.len += len;
    }

    /// All of one expert's values, part by part.
    fn values<'a>(&'a self, adapter: &'a Adapter) -> impl Iterator<Item = Cow<'a, [f32]>> {
        self.parts.iter().map(move |part| self.part(adapter, part))
    }

    /// Copies one expert's values in `range` of the line to `row`.
    fn copy(&self, adapter: &Adapter, range: Range<usize>, row: &mut [f32]) {
        let first = self.parts.partition_point(|part| part.range.end <= range.start);
        for part in self.parts[first..].iter().take_while(|part| part.range.start < range.end) {
            let start = part.range.start.max(range.start);
            let end = part.range.end.min(range.end);
            let values = self.part(adapter, part);
            row[start - range.start..end - range.start]
                .copy_from_slice(&values[start - part.range.start..end - part.range.start]);
        }
    }

    /// The values of one matrix, less the start where there is one.
    fn part<'a>(&self, adapter: &'a Adapter, part: &Part) -> Cow<'a, [f32]> {
        // The layout found this module, with this shape, in every expert.
        let update: &LowRank = &adapter.modules()[&part.module];
        match (part.side, self.start.get(&part.module)) {
            (Side::A, None) => update.a().values(),
            (Side::B, _) => update.b().values(),
            (Side::A, Some(start)) => {
                let (now, then) = (update.a().values(), start.values());
                Cow::Owned(now.iter().zip(then.iter()).map(|(now, then)| now - then).collect())
            }
        }
    }
}

/// The starting A of a tie, checked against the experts' shape.
fn start(experts: &Experts, tie: &Tie) -> Result<(String, Matrix)> {
    let module = tie.first();
    let start = experts.start(module)?;
    let expected = [tie.ranks[0], tie.input()];
    if [start.rows(), start.cols()] != expected {
        let found = format!("it is {:?}; expected {expected:?}, as in the experts", [start.rows(), start.cols()]);
        return Err(Error::Start { module: module.to_owned(), source: Cause::from(found) });
    }
    Ok((module.to_owned(), start))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::planted::adapter;

    #[test]
    fn the_groups_that_fit_into_memory_do_not_change_a_bit() {
        let adapters = (0..5).map(|seed| (format!("e{seed}"), adapter(seed, 100, 1.0, true)));
        let experts = Experts::in_memory(adapters).unwrap();
        let line = Line::of(&experts, Space::Parameters).unwrap();
        assert!(line.len > 2 * RUN && !line.len.is_multiple_of(RUN), "{}", line.len);
        let whole = gram_by_columns(&experts, &line, 0.5, line.len.next_multiple_of(RUN)).unwrap();
        for columns in [RUN, 2 * RUN] {
            assert_eq!(gram_by_columns(&experts, &line, 0.5, columns).unwrap(), whole);
        }
        assert_eq!(gram(&experts, Space::Parameters, 0.5).unwrap(), whole);
    }
}
