//! Inner products of flattened adapters, for the spaces `parameters` and `change`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use faer::linalg::matmul::triangular::{BlockStructure, matmul};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use lorakit_adapter::{Adapter, LowRank, Matrix};
use rayon::prelude::*;

use crate::comparison_space::ComparisonSpace;
use crate::error::{BoxError, ClusterError, Result};
use crate::expert_set::ExpertSet;
use crate::gram::magnitude_threshold::magnitude_threshold;
use crate::gram::module_layout::{ModuleLayout, TiedModules};
use crate::gram::triangle::mirror_lower;

/// The size in bytes of the experts' values in memory, as f32: a MiB for each expert, within bounds.
fn group_bytes(experts: usize) -> usize {
    (experts << 20).clamp(704 << 20, 2 << 30)
}

/// Of how many experts products are in memory at once: with all of them, the products of one block of coordinates would take
/// n^2 values per thread.
const TILE: usize = 2048;

/// How many coordinates are summed in f32 before the sum is added in f64. Fixed, since results depend on it.
const BLOCK: usize = 4096;

/// The inner products `[n, n]` of the experts' flattened values.
pub(crate) fn gram(experts: &ExpertSet, space: ComparisonSpace, sparsity: f64) -> Result<Vec<f64>> {
    let layout = FlatLayout::of(experts, space)?;
    let columns = group_bytes(experts.len()) / size_of::<f32>() / experts.len();
    gram_by_columns(experts, &layout, sparsity, columns.next_multiple_of(BLOCK))
}

/// [`gram`] with `columns` coordinates in memory at once, a multiple of [`BLOCK`].
fn gram_by_columns(experts: &ExpertSet, layout: &FlatLayout, sparsity: f64, columns: usize) -> Result<Vec<f64>> {
    let n = experts.len();
    let mut thresholds = vec![None::<f32>; n];
    let mut sum = vec![0f64; n * n];
    let columns = columns.min(layout.len);
    let mut rows = vec![0f32; n * columns];
    // Waves bound how many products are in memory.
    let wave = (4 * rayon::current_num_threads()).min(columns.div_ceil(BLOCK)).max(1);
    let tile = n.min(TILE);
    let mut products: Vec<Mat<f32>> = (0..wave).map(|_| Mat::zeros(tile, tile)).collect();
    for start in (0..layout.len).step_by(columns.max(1)) {
        let range = start..(start + columns).min(layout.len);
        let rows = &mut rows[..n * range.len()];
        let slots = rows.par_chunks_exact_mut(range.len()).zip(&mut thresholds).enumerate();
        slots.try_for_each(|(index, (row, dropped))| {
            experts.with_adapter(index, |adapter| {
                // Computed once, in the first group, from all of the expert.
                if start == 0 {
                    *dropped = magnitude_threshold(|| layout.values(adapter), sparsity);
                }
                layout.copy(adapter, range.clone(), row);
                if let Some(dropped) = *dropped {
                    row.iter_mut().for_each(|value| *value = if value.abs() > dropped { *value } else { 0.0 });
                }
            })
        })?;
        add_products(&mut sum, MatRef::from_row_major_slice(rows, n, range.len()), &mut products);
    }
    mirror_lower(&mut sum, n);
    Ok(sum)
}

/// Adds the lower triangle of `rows rows'` to `sum`, tile by tile, as large as `products`, and block by block: in parallel,
/// and in the order of the blocks however many `products` there are.
fn add_products(sum: &mut [f64], rows: MatRef<'_, f32>, products: &mut [Mat<f32>]) {
    let (n, size) = (rows.nrows(), products[0].nrows());
    let tile = |start: usize| start..(start + size).min(n);
    for left in (0..n).step_by(size).map(tile) {
        for right in (0..=left.start).step_by(size).map(tile) {
            add_tile(sum, rows, [left.clone(), right], products);
        }
    }
}

/// The products of the experts `left` with the experts `right`; of one tile with itself, the lower triangle.
fn add_tile(sum: &mut [f64], rows: MatRef<'_, f32>, [left, right]: [Range<usize>; 2], products: &mut [Mat<f32>]) {
    let n = rows.nrows();
    let blocks: Vec<usize> = (0..rows.ncols()).step_by(BLOCK).collect();
    for wave in blocks.chunks(products.len()) {
        let products = &mut products[..wave.len()];
        products.par_iter_mut().zip(wave).for_each(|(product, &start)| {
            let columns = rows.subcols(start, BLOCK.min(rows.ncols() - start));
            let [x, y] = [&left, &right].map(|tile| columns.subrows(tile.start, tile.len()));
            tile_products(x, y, product.as_mut().submatrix_mut(0, 0, x.nrows(), y.nrows()), left == right);
        });
        sum[left.start * n..left.end * n].par_chunks_exact_mut(n).enumerate().for_each(|(i, sum)| {
            let end = right.end.min(left.start + i + 1);
            for product in &*products {
                let sums = sum[right.start..end].iter_mut().enumerate();
                sums.for_each(|(j, sum)| *sum += f64::from(product[(i, j)]));
            }
        });
    }
}

/// `x y'`; where `lower`, its lower triangle, and the rest is undefined.
fn tile_products(x: MatRef<'_, f32>, y: MatRef<'_, f32>, product: MatMut<'_, f32>, lower: bool) {
    let full = BlockStructure::Rectangular;
    let kept = if lower { BlockStructure::TriangularLower } else { full };
    matmul(product, kept, Accum::Replace, x, full, y.transpose(), full, 1.0, Par::Seq);
}

/// Where each matrix is in the flattened vector of an expert: for each group of tied modules the A once, then each B.
struct FlatLayout {
    segments: Vec<Segment>,
    len: usize,
    /// For each module, the initial A to subtract; empty in the space `parameters`.
    initial: BTreeMap<String, Matrix>,
}

/// One matrix of an adapter, and its coordinates.
struct Segment {
    module: String,
    factor: Factor,
    range: Range<usize>,
}

#[derive(Clone, Copy)]
enum Factor {
    A,
    B,
}

impl FlatLayout {
    fn of(experts: &ExpertSet, space: ComparisonSpace) -> Result<Self> {
        let modules = ModuleLayout::of(experts)?;
        modules.ensure_aligned(experts.names(), space)?;
        let mut layout = Self { segments: Vec::new(), len: 0, initial: BTreeMap::new() };
        for tied in &modules.groups {
            layout.push(tied.first(), Factor::A, tied.ranks[0] * tied.input());
            for (module, width) in &tied.modules {
                layout.push(module, Factor::B, tied.ranks[0] * width.output);
            }
        }
        if space == ComparisonSpace::Change {
            layout.initial = modules.groups.iter().map(|tied| initial_a(experts, tied)).collect::<Result<_>>()?;
        }
        Ok(layout)
    }

    fn push(&mut self, module: &str, factor: Factor, len: usize) {
        self.segments.push(Segment { module: module.to_owned(), factor, range: self.len..self.len + len });
        self.len += len;
    }

    /// All of one expert's values, segment by segment.
    fn values<'a>(&'a self, adapter: &'a Adapter) -> impl Iterator<Item = Cow<'a, [f32]>> {
        self.segments.iter().map(move |segment| self.segment(adapter, segment))
    }

    /// Copies one expert's values at the coordinates `range` to `row`.
    fn copy(&self, adapter: &Adapter, range: Range<usize>, row: &mut [f32]) {
        let first = self.segments.partition_point(|segment| segment.range.end <= range.start);
        for segment in self.segments[first..].iter().take_while(|segment| segment.range.start < range.end) {
            let start = segment.range.start.max(range.start);
            let end = segment.range.end.min(range.end);
            let values = self.segment(adapter, segment);
            row[start - range.start..end - range.start]
                .copy_from_slice(&values[start - segment.range.start..end - segment.range.start]);
        }
    }

    /// The values of one matrix, minus the initial A if there is one.
    fn segment<'a>(&self, adapter: &'a Adapter, segment: &Segment) -> Cow<'a, [f32]> {
        // `ModuleLayout` found this module, with this shape, in every expert.
        let update: &LowRank = &adapter.modules()[&segment.module];
        match (segment.factor, self.initial.get(&segment.module)) {
            (Factor::A, None) => update.a().values(),
            (Factor::B, _) => update.b().values(),
            (Factor::A, Some(initial)) => {
                let (now, then) = (update.a().values(), initial.values());
                Cow::Owned(now.iter().zip(then.iter()).map(|(now, then)| now - then).collect())
            }
        }
    }
}

/// The initial A of tied modules, checked against the experts' shape.
fn initial_a(experts: &ExpertSet, tied: &TiedModules) -> Result<(String, Matrix)> {
    let module = tied.first();
    let initial = experts.initial_a(module)?;
    let expected = [tied.ranks[0], tied.input()];
    if [initial.rows(), initial.cols()] != expected {
        let found = format!("it is {:?}; expected {expected:?}, as in the experts", [initial.rows(), initial.cols()]);
        return Err(ClusterError::InitialA { module: module.to_owned(), source: BoxError::from(found) });
    }
    Ok((module.to_owned(), initial))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::synthetic::adapter;

    #[test]
    fn tiles_make_up_the_lower_triangle() {
        let (n, columns) = (7, BLOCK + 3);
        // Small whole numbers, whose sums are exact in any order.
        let rows = Mat::from_fn(n, columns, |i, j| ((i * 31 + j * 17) % 7) as f32 - 3.0);
        let product = |i: usize, j: usize| (0..columns).map(|c| f64::from(rows[(i, c)] * rows[(j, c)])).sum::<f64>();
        for tile in [1, 2, 3, 7] {
            for wave in [1, 2] {
                let mut sum = vec![0.0; n * n];
                add_products(&mut sum, rows.as_ref(), &mut vec![Mat::zeros(tile, tile); wave]);
                for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    assert_eq!(sum[i * n + j], if j <= i { product(i, j) } else { 0.0 }, "tiles of {tile}: {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn the_result_does_not_depend_on_how_much_fits_in_memory() {
        let adapters = (0..5).map(|seed| (format!("e{seed}"), adapter(seed, 100, 1.0, true)));
        let experts = ExpertSet::in_memory(adapters).unwrap();
        let layout = FlatLayout::of(&experts, ComparisonSpace::Parameters).unwrap();
        assert!(layout.len > 2 * BLOCK && !layout.len.is_multiple_of(BLOCK), "{}", layout.len);
        let whole = gram_by_columns(&experts, &layout, 0.5, layout.len.next_multiple_of(BLOCK)).unwrap();
        for columns in [BLOCK, 2 * BLOCK] {
            assert_eq!(gram_by_columns(&experts, &layout, 0.5, columns).unwrap(), whole);
        }
        assert_eq!(gram(&experts, ComparisonSpace::Parameters, 0.5).unwrap(), whole);
    }
}
