//! Matrix products over plain slices, for the ops that run on a CPU.
//!
//! [`multiply`] is the safe door to the `gemm` crate: views carry their strides, and every address that a
//! product can touch is checked once, when the view is made.

use gemm::Parallelism;

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
    data: &'a mut [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

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
        Self { data, rows, columns, row_stride, column_stride: 1 }
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
    // SAFETY: the views were checked against their slices when they were made, `c` is borrowed exclusively, and
    // its rows do not overlap.
    unsafe {
        gemm::gemm(
            c.rows,
            c.columns,
            a.columns,
            c.data.as_mut_ptr(),
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
