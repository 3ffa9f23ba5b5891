//! Matrix products over plain slices, for the ops that run on a CPU.
//!
//! [`multiply`] is the safe door to the `gemm` crate: views carry their strides, and every address that a
//! product can touch is checked once, when the view is made.

use gemm::Parallelism;
use std::marker::PhantomData;
use std::ops::Range;

/// A matrix within a slice: `at(i, j) = data[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

/// A matrix within a slice that may be written to.
pub struct ViewMut<'a> {
    /// Where the matrix starts. A pointer, since matrices that take turns within one row would overlap as slices.
    data: *mut f32,
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: a view stands for an exclusive borrow of its own values, which may go to another thread as a slice may.
unsafe impl Send for ViewMut<'_> {}

/// One past the last address of such a matrix.
fn extent(rows: usize, columns: usize, row_stride: usize, column_stride: usize) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * row_stride + (columns - 1) * column_stride + 1 }
}

impl<'a> View<'a> {
    /// A row-major matrix whose rows start `row_stride` apart.
    ///
    /// # Panics
    /// Where the slice is too short, which is a mistake of the caller and never of an input.
    pub fn new(data: &'a [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            extent(rows, columns, row_stride, 1) <= data.len(),
            "view of {rows} x {columns} by {row_stride} over {}",
            data.len()
        );
        Self { data, rows, columns, row_stride, column_stride: 1 }
    }

    /// The same values, read as the transpose.
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

impl<'a> ViewMut<'a> {
    /// A row-major matrix whose rows start `row_stride` apart.
    ///
    /// # Panics
    /// Where the slice is too short or rows would overlap.
    pub fn new(data: &'a mut [f32], rows: usize, columns: usize, row_stride: usize) -> Self {
        assert!(
            extent(rows, columns, row_stride, 1) <= data.len(),
            "view of {rows} x {columns} by {row_stride} over {}",
            data.len()
        );
        assert!(rows <= 1 || row_stride >= columns, "rows of {columns} overlap by {row_stride}");
        Self { data: data.as_mut_ptr(), rows, columns, row_stride, column_stride: 1, slice: PhantomData }
    }

    /// The matrix in stretches of at most `width` columns, each with the range that it covers: every one is a matrix
    /// of its own, and threads can fill them side by side.
    pub fn stretches(self, width: usize) -> Vec<(Range<usize>, ViewMut<'a>)> {
        let stretch = |start: usize| {
            let columns = start..self.columns.min(start + width);
            // SAFETY: `start` is within the row, whose addresses were checked when the view was made; no two
            // stretches have a column in common, and `self` is given up for them.
            let data = unsafe { self.data.add(start * self.column_stride) };
            (columns.clone(), ViewMut { data, columns: columns.len(), ..self })
        };
        (0..if self.rows == 0 { 0 } else { self.columns }).step_by(width).map(stretch).collect()
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

/// `c = scale * a b`, or `c += scale * a b`.
///
/// # Panics
/// Where the dimensions do not agree.
pub fn multiply(c: ViewMut, into: Destination, a: View, b: View, scale: f32, threads: Threads) {
    assert_eq!((c.rows, c.columns, a.columns), (a.rows, b.columns, b.rows), "dimensions of a product");
    if c.rows == 0 || c.columns == 0 {
        return;
    }
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
    let add = into == Destination::Add;
    // SAFETY: the views were checked against their slices when they were made, `c`'s values are its alone, and its
    // rows do not overlap.
    unsafe {
        gemm::gemm(
            c.rows,
            c.columns,
            a.columns,
            c.data,
            c.column_stride as isize,
            c.row_stride as isize,
            add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
