//! Matrix products over plain slices, for the ops that run on a CPU.
//!
//! [`multiply`] is faer's product, whose kernels are the fastest that we know of where one side is transposed or small;
//! it is given one thread, and what is to run on all of them is cut into stretches here.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use std::ops::Range;

/// A matrix within a slice.
#[derive(Clone, Copy)]
pub struct View<'a>(MatRef<'a, f32>);

/// A matrix within a slice that may be written to.
pub struct ViewMut<'a>(MatMut<'a, f32>);

impl<'a> View<'a> {
    /// A row-major matrix whose rows start `row_stride` apart.
    ///
    /// # Panics
    /// Where the slice is too short, which is a mistake of the caller and never of an input.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self(MatRef::from_column_major_slice_with_stride(data, columns, rows, row_stride).transpose())
    }

    /// The same values, read as the transpose.
    pub fn transposed(self) -> Self {
        Self(self.0.transpose())
    }
}

impl<'a> ViewMut<'a> {
    /// A row-major matrix whose rows start `row_stride` apart.
    ///
    /// # Panics
    /// Where the slice is too short or rows would overlap.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        Self(MatMut::from_column_major_slice_with_stride_mut(data, columns, rows, row_stride).transpose_mut())
    }

    /// The matrix in stretches of at most `width` columns, each with the range that it covers: every one is a matrix
    /// of its own, and threads can fill them side by side.
    pub fn stretches(self, width: usize) -> Vec<(Range<usize>, ViewMut<'a>)> {
        let (mut rest, mut start, mut stretches) = (self.0, 0, Vec::new());
        while rest.nrows() > 0 && rest.ncols() > 0 {
            let count = width.min(rest.ncols());
            let (stretch, others) = rest.split_at_col_mut(count);
            let end = start + count;
            stretches.push((start..end, Self(stretch)));
            (rest, start) = (others, end);
        }
        stretches
    }

    /// The same matrix, read as the transpose.
    fn transposed(self) -> Self {
        Self(self.0.transpose_mut())
    }
}

/// What a product does with what stands in its destination.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// It is overwritten.
    Overwrite,
    /// The product is added to it.
    Add,
}

/// How many threads a product may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling one: the caller shares out the work itself.
    One,
    /// All of the current pool.
    All,
}

/// Columns that one task of the pool makes of a product on all threads: enough for the kernels, and few enough that
/// threads end together.
const STRETCH: usize = 128;

/// Multiplications below which a product is done before other threads have heard of it.
const SHARED_WORK: usize = 1 << 18;

/// `c = scale * a b`, or `c += scale * a b`.
///
/// # Panics
/// Where the dimensions do not agree.
pub fn multiply(c: ViewMut, into: Destination, a: View, b: View, scale: f32, threads: Threads) {
    let (rows, columns, depth) = (c.0.nrows(), c.0.ncols(), a.0.ncols());
    let accumulate = match into {
        Destination::Overwrite => Accum::Replace,
        Destination::Add => Accum::Add,
    };
    if threads == Threads::One || rows * columns * depth < SHARED_WORK {
        return matmul(c.0, accumulate, a.0, b.0, scale, Par::Seq);
    }
    // The longer side is cut.
    let (c, a, b) = if rows > columns { (c.transposed(), b.0.transpose(), a.0.transpose()) } else { (c, a.0, b.0) };
    c.stretches(STRETCH).into_par_iter().for_each(|(part, c)| {
        matmul(c.0, accumulate, a, b.subcols(part.start, part.len()), scale, Par::Seq);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers: their sums are exact in any order.
    fn numbers(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect()
    }

    /// Wide and tall, of one task and of many, with sides turned and rows that lie apart.
    #[test]
    fn products_cut_among_threads_are_products() {
        for (rows, columns, depth) in [(5, 3, 4), (1, 700, 513), (70, 900, 33), (900, 70, 33), (700, 1, 513)] {
            let (a, b) = (numbers(rows * (depth + 2), 5), numbers(columns * depth, 7));
            let a_view = View::new(&a, rows, depth, depth + 2);
            let b_view = View::new(&b, columns, depth, depth).transposed();
            let expected =
                |i: usize, j: usize| (0..depth).map(|k| a[i * (depth + 2) + k] * b[j * depth + k]).sum::<f32>() * 0.5;
            for threads in [Threads::One, Threads::All] {
                let width = columns + 3;
                let mut c = vec![1.0; rows * width];
                let view = ViewMut::new(&mut c, rows, columns, width);
                multiply(view, Destination::Add, a_view, b_view, 0.5, threads);
                let at = |c: &[f32], i: usize, j: usize| c[i * width + j];
                let all = || (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j)));
                assert!(all().all(|(i, j)| at(&c, i, j) == expected(i, j) + 1.0), "{rows} {columns} {depth}, added");
                let view = ViewMut::new(&mut c, rows, columns, width);
                multiply(view, Destination::Overwrite, a_view, b_view, 0.5, threads);
                assert!(all().all(|(i, j)| at(&c, i, j) == expected(i, j)), "{rows} {columns} {depth}, written");
                assert!((0..rows).all(|i| (columns..width).all(|j| at(&c, i, j) == 1.0)), "beside the matrix");
            }
        }
    }

    #[test]
    fn nothing_times_nothing_is_zero() {
        let mut c = vec![3.0; 4];
        let nothing = View::new(&[], 2, 0, 0);
        let c_view = ViewMut::new(&mut c, 2, 2, 2);
        multiply(c_view, Destination::Overwrite, nothing, nothing.transposed(), 1.0, Threads::One);
        assert_eq!(c, [0.0; 4]);
    }
}
