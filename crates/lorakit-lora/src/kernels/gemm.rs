//! Matrix products over f32 slices on the CPU.
//!
//! [`gemm`] is faer's product on one thread: its kernels are the fastest we know of where one side is transposed or
//! small. [`par_gemm`] cuts the product into tiles and shares them among the threads of the pool. A value is summed in the
//! same order in any tile.

use crate::kernels::simd::SimdLevel;
use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::ops::Range;

/// A matrix over a slice.
#[derive(Clone, Copy)]
pub struct MatrixRef<'a>(MatRef<'a, f32>);

/// A mutable matrix over a slice.
pub struct MatrixMut<'a>(MatMut<'a, f32>);

impl<'a> MatrixRef<'a> {
    /// A row-major matrix whose rows start `row_stride` values apart.
    ///
    /// # Panics
    /// If the slice is too short: a bug of the caller, never a property of its input.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self(MatRef::from_column_major_slice_with_stride(data, columns, rows, row_stride).transpose())
    }

    /// The transpose, over the same values.
    pub fn transposed(self) -> Self {
        Self(self.0.transpose())
    }

    /// Some of its columns.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn columns(self, columns: Range<usize>) -> Self {
        Self(self.0.subcols(columns.start, columns.len()))
    }
}

impl<'a> MatrixMut<'a> {
    /// A row-major matrix whose rows start `row_stride` values apart.
    ///
    /// # Panics
    /// If the slice is too short, or rows would overlap.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self(MatMut::from_column_major_slice_with_stride_mut(data, columns, rows, row_stride).transpose_mut())
    }

    /// The same matrix for a shorter time.
    pub fn reborrowed(&mut self) -> MatrixMut<'_> {
        MatrixMut(self.0.as_mut())
    }

    /// The matrix cut into tiles of at most `width` columns, each with its range of columns. The tiles do not overlap, so
    /// threads can fill them in parallel.
    pub fn column_tiles(self, width: usize) -> Vec<(Range<usize>, MatrixMut<'a>)> {
        let (mut rest, mut start, mut tiles) = (self.0, 0, Vec::new());
        while rest.nrows() > 0 && rest.ncols() > 0 {
            let count = width.min(rest.ncols());
            let (tile, others) = rest.split_at_col_mut(count);
            let end = start + count;
            tiles.push((start..end, Self(tile)));
            (rest, start) = (others, end);
        }
        tiles
    }

    /// The matrix cut into tiles of at most `height` rows of nearly equal number, each with its range of rows.
    fn row_tiles(self, height: usize) -> Vec<(Range<usize>, MatrixMut<'a>)> {
        let (rows, count) = (self.0.nrows(), self.0.nrows().div_ceil(height));
        let (mut rest, mut start, mut tiles) = (self.0, 0, Vec::new());
        for tile in 1..=count {
            let end = rows * tile / count;
            let (own, others) = rest.split_at_row_mut(end - start);
            tiles.push((start..end, Self(own)));
            (rest, start) = (others, end);
        }
        tiles
    }

    /// The first `columns` columns, and the others.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_at_column(self, columns: usize) -> (Self, Self) {
        let (first, others) = self.0.split_at_col_mut(columns);
        (Self(first), Self(others))
    }

    /// Writes `values`, `[rows, columns]`.
    ///
    /// # Panics
    /// If there are fewer values than elements.
    pub fn copy_from(mut self, values: &[f32]) {
        let (rows, columns) = (self.0.nrows(), self.0.ncols());
        for row in 0..rows {
            let values = &values[row * columns..][..columns];
            match self.0.rb_mut().row_mut(row).try_as_row_major_mut() {
                Some(row) => row.as_slice_mut().copy_from_slice(values),
                None => self.0.rb_mut().row_mut(row).iter_mut().zip(values).for_each(|(to, from)| *to = *from),
            }
        }
    }

    /// Writes the transpose of `values`, `[columns, rows]`.
    ///
    /// # Panics
    /// If there are fewer values than elements.
    pub fn copy_from_transposed(mut self, values: &[f32]) {
        let (rows, columns) = (self.0.nrows(), self.0.ncols());
        if rows == 1 {
            return self.copy_from(values);
        }
        for column in 0..columns {
            for row in 0..rows {
                self.0[(row, column)] = values[column * rows + row];
            }
        }
    }
}

/// What a product does to the values of its destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// Overwrites them.
    Overwrite,
    /// Adds to them.
    Add,
}

impl Destination {
    fn accum(self) -> Accum {
        match self {
            Self::Overwrite => Accum::Replace,
            Self::Add => Accum::Add,
        }
    }
}

/// Columns of a tile: whole panels of faer's kernels, which hold 96 values with AVX-512 and 24 with AVX2. The part of `b`
/// that belongs to a tile is copied into panels; cut by columns, each part is copied once for all rows of a tile.
fn tile_columns() -> usize {
    match SimdLevel::widest() {
        SimdLevel::Avx512 => 96,
        SimdLevel::Avx2 | SimdLevel::Scalar => 48,
    }
}

/// Most rows of a tile: so many that copying panels does not show, and so few that there are tiles for many threads. faer
/// multiplies a thousand rows at once up to a sixth slower (AVX2, tiles of 48 columns).
const ROWS: usize = 512;

/// Multiplications below which a product is finished before other threads have woken up.
pub const PARALLEL_WORK: usize = 1 << 18;

/// `c = scale * a b`, or `c += scale * a b`, on the calling thread.
///
/// # Panics
/// If the dimensions do not agree.
pub fn gemm(c: MatrixMut, into: Destination, a: MatrixRef, b: MatrixRef, scale: f32) {
    if c.0.nrows() <= ROWS {
        return matmul(c.0, into.accum(), a.0, b.0, scale, Par::Seq);
    }
    for (rows, c) in c.row_tiles(ROWS) {
        matmul(c.0, into.accum(), a.0.subrows(rows.start, rows.len()), b.0, scale, Par::Seq);
    }
}

/// The same as [`gemm`] on all threads of the current pool.
///
/// # Panics
/// If the dimensions do not agree.
pub fn par_gemm(c: MatrixMut, into: Destination, a: MatrixRef, b: MatrixRef, scale: f32) {
    let (rows, columns, depth) = (c.0.nrows(), c.0.ncols(), a.0.ncols());
    if rows * columns * depth < PARALLEL_WORK {
        return gemm(c, into, a, b, scale);
    }
    let width = tile_columns();
    let tiles = c
        .row_tiles(ROWS)
        .into_iter()
        .flat_map(|(rows, c)| c.column_tiles(width).into_iter().map(move |(columns, c)| (rows.clone(), columns, c)));
    tiles.collect::<Vec<_>>().into_par_iter().for_each(|(rows, columns, c)| {
        let (a, b) = (a.0.subrows(rows.start, rows.len()), b.0.subcols(columns.start, columns.len()));
        matmul(c.0, into.accum(), a, b, scale, Par::Seq);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small integers: their sums are exact in any order.
    fn integers(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    /// Wide and tall, one tile and many, with a transposed side and strided rows.
    #[test]
    fn gemm_and_par_gemm_match_the_definition() {
        for (rows, columns, depth) in [(5, 3, 4), (1, 700, 513), (70, 900, 33), (1100, 70, 33), (700, 1, 513)] {
            let (a, b) = (integers(rows * (depth + 2), 5), integers(columns * depth, 7));
            let a_view = MatrixRef::new(&a, rows, depth, depth + 2);
            let b_view = MatrixRef::new(&b, columns, depth, depth).transposed();
            let expected =
                |i: usize, j: usize| (0..depth).map(|k| a[i * (depth + 2) + k] * b[j * depth + k]).sum::<f32>() * 0.5;
            for product in [gemm, par_gemm] {
                let width = columns + 3;
                let mut c = vec![1.0; rows * width];
                let view = MatrixMut::new(&mut c, rows, columns, width);
                product(view, Destination::Add, a_view, b_view, 0.5);
                let at = |c: &[f32], i: usize, j: usize| c[i * width + j];
                let all = || (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
                assert!(all().all(|(i, j)| at(&c, i, j) == expected(i, j) + 1.0), "{rows} {columns} {depth}, added");
                // What is overwritten is not read.
                (0..rows).for_each(|i| c[i * width..][..columns].fill(f32::NAN));
                let view = MatrixMut::new(&mut c, rows, columns, width);
                product(view, Destination::Overwrite, a_view, b_view, 0.5);
                assert!(all().all(|(i, j)| at(&c, i, j) == expected(i, j)), "{rows} {columns} {depth}, written");
                assert!((0..rows).all(|i| (columns..width).all(|j| at(&c, i, j) == 1.0)), "beside the matrix");
            }
        }
    }

    #[test]
    fn rows_are_written_into_wider_and_transposed_matrices() {
        let (mut c, mut transposed) = (vec![0.0; 6], vec![0.0; 4]);
        MatrixMut::new(&mut c, 2, 2, 3).copy_from(&[1.0, 2.0, 3.0, 4.0]);
        MatrixMut::new(&mut transposed, 2, 2, 2).copy_from_transposed(&[1.0, 2.0, 3.0, 4.0]);
        assert_eq!((c, transposed), (vec![1.0, 2.0, 0.0, 3.0, 4.0, 0.0], vec![1.0, 3.0, 2.0, 4.0]));
    }

    #[test]
    fn an_empty_inner_dimension_gives_zeros() {
        let mut c = vec![3.0; 4];
        let empty = MatrixRef::new(&[], 2, 0, 0);
        let c_view = MatrixMut::new(&mut c, 2, 2, 2);
        gemm(c_view, Destination::Overwrite, empty, empty.transposed(), 1.0);
        assert_eq!(c, [0.0; 4]);
    }
}
