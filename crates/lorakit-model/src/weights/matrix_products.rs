//! Products with frozen matrices whose values are in their files, forward and backward: they are widened tile by tile inside
//! each product, and quantized ones may be multiplied as they are.

use crate::weights::block_quantization::{BlockType, EightBitTokens};
use crate::weights::few_tokens::{FEW, RowProducts};
use crate::weights::mmap_matrix::{MmapMatrix, Slice};
use crate::weights::token_lanes::{self, LaneProducts, RowSource, TokenLanes};
use crate::weights::token_precision::TokenPrecision;
use lorakit_lora::kernels::gemm::{Destination, MatrixMut, MatrixRef, PARALLEL_WORK, gemm, par_gemm};
use rayon::prelude::*;
use std::ops::Range;

/// Rows (forward) or columns (backward) of a 16-bit matrix that are widened at a time, so that a tile stays in its core's
/// cache while all tokens are multiplied with it.
const TILE: usize = 96;

/// Rows that are multiplied with few tokens at a time: few enough that threads end together.
const FEW_ROWS: usize = 32;

/// Quantized rows that the backward dequantizes at a time, for the same reason.
const BLOCK_ROWS: usize = 256;

/// Rows of a tile of columns (backward): of a head of 262,144 rows, a whole one would take 64 MiB per thread.
const TILE_ROWS: usize = 4096;

impl MmapMatrix {
    /// `y[:, columns] = x Wᵀ`: `x` is `[tokens, columns of W]`, and `y` is `[tokens, width]`.
    #[cfg(test)]
    pub(super) fn forward(&self, x: &[f32], y: &mut [f32], width: usize, columns: Range<usize>) {
        assert_eq!(columns.len(), self.rows(), "columns of the output");
        let y = MatrixMut::new(&mut y[columns.start..], x.len() / self.columns(), self.rows(), width);
        product(&[self], &Tokens::new(&[self], x, TokenPrecision::Exact), y);
    }

    /// How it is multiplied with these tokens.
    fn kernel(&self, tokens: &Tokens) -> ProductKernel {
        let count = tokens.x.len() / self.columns();
        if tokens.eight_bit.is_some() && self.integer_type().is_some() {
            return ProductKernel::Integers;
        }
        match count {
            0..=FEW => ProductKernel::Few,
            _ if token_lanes::TOKENS.contains(&count) => ProductKernel::Lanes,
            _ if self.plain_f32().is_some() => ProductKernel::Whole,
            _ => ProductKernel::Widened,
        }
    }

    /// `y = x Wᵀ` for some rows of a matrix: `y` is `[tokens, rows]`. `scratch` is used again for the next tile.
    fn forward_tile(&self, tokens: &Tokens, rows: Range<usize>, y: MatrixMut, scratch: &mut [Vec<f32>; 2]) {
        let (x, count) = (tokens.x, tokens.x.len() / self.columns());
        let [wide, products] = scratch;
        products.resize(rows.len() * count, 0.0);
        match (self.kernel(tokens), &tokens.eight_bit, &tokens.lanes) {
            (ProductKernel::Integers, Some(tokens), _) => {
                self.integer_products(rows, tokens, products);
                y.copy_from_transposed(products);
            }
            (ProductKernel::Lanes, _, Some(lanes)) => {
                LaneProducts { lanes, source: self, rows, y: products, wide }.run();
                y.copy_from(products);
            }
            (ProductKernel::Few, ..) => {
                wide.resize(self.columns(), 0.0);
                self.few_products(rows, x, wide, products);
                y.copy_from_transposed(products);
            }
            _ => {
                wide.resize(rows.len() * self.columns(), 0.0);
                self.widen_rows(rows.clone(), wide);
                let x = MatrixRef::new(x, count, self.columns(), self.columns());
                let w = MatrixRef::new(wide, rows.len(), self.columns(), self.columns());
                gemm(y, Destination::Overwrite, x, w.transposed(), 1.0);
            }
        }
    }

    /// `y`, `[rows, tokens]`, of few tokens; `row` is scratch for a row.
    fn few_products(&self, rows: Range<usize>, x: &[f32], row: &mut [f32], y: &mut [f32]) {
        let columns = self.columns();
        if let Some(rows) = self.ordered_slice(rows.clone()) {
            return stored_products(rows, columns, x, y);
        }
        for (index, y) in rows.zip(y.chunks_exact_mut(x.len() / columns)) {
            match self.row_slice(index) {
                Some(row) => stored_products(row, columns, x, y),
                None => {
                    self.widen_part(index, 0..columns, row);
                    RowProducts { rows: &*row, columns, x, y }.run();
                }
            }
        }
    }

    /// The type of its blocks, if they are multiplied with tokens of 8 bits.
    pub(super) fn integer_type(&self) -> Option<BlockType> {
        self.block_type().filter(|block_type| block_type.has_integer_products())
    }

    /// `y`, `[rows, tokens]`, of quantized rows and tokens of 8 bits.
    fn integer_products(&self, rows: Range<usize>, tokens: &EightBitTokens, y: &mut [f32]) {
        let multiply = |stored: Range<usize>, y: &mut [f32]| {
            if let Some((block_type, blocks)) = self.stored_blocks(stored) {
                block_type.integer_products(blocks, tokens, y);
            }
        };
        let Some(order) = self.order() else { return multiply(rows, y) };
        for (&row, y) in order[rows].iter().zip(y.chunks_exact_mut(tokens.len())) {
            multiply(row as usize..row as usize + 1, y);
        }
    }

    /// `dx = dy W`, or added to `dx`: `dy` is `[tokens, rows]` and `dx` `[tokens, columns]`.
    pub fn backward(&self, dy: MatrixRef, dx: &mut [f32], into: Destination) {
        let dx = MatrixMut::new(dx, dx.len() / self.columns(), self.columns(), self.columns());
        if let Some(w) = self.plain_f32() {
            let w = MatrixRef::new(w, self.rows(), self.columns(), self.columns());
            return par_gemm(dx, into, dy, w, 1.0);
        }
        // Tiles of columns are of whole blocks; the order in which their rows are added up depends on nothing else.
        let (width, rows) = match self.block_values() {
            Some(block) => (TILE.next_multiple_of(block), BLOCK_ROWS),
            None => (TILE, TILE_ROWS),
        };
        dx.column_tiles(width).into_par_iter().for_each_init(Vec::new, |wide, (columns, mut dx)| {
            for start in (0..self.rows()).step_by(rows) {
                let rows = start..(start + rows).min(self.rows());
                self.widen_columns(rows.clone(), &columns, wide);
                let w = MatrixRef::new(wide, rows.len(), columns.len(), columns.len());
                let into = if start == 0 { into } else { Destination::Add };
                gemm(dx.reborrowed(), into, dy.columns(rows), w, 1.0);
            }
        });
    }
}

/// `y`, `[rows, tokens]`, of few tokens and rows as they are stored.
fn stored_products(rows: Slice, columns: usize, x: &[f32], y: &mut [f32]) {
    match rows {
        Slice::F32(rows) => RowProducts { rows, columns, x, y }.run(),
        Slice::BF16(rows) => RowProducts { rows, columns, x, y }.run(),
        Slice::F16(rows) => RowProducts { rows, columns, x, y }.run(),
    }
}

/// How a matrix is multiplied with some tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ProductKernel {
    /// Quantized rows with tokens of 8 bits.
    Integers,
    /// Row by row with few tokens.
    Few,
    /// Row by row with some tens of tokens.
    Lanes,
    /// Tiles of rows, widened, with many tokens.
    Widened,
    /// All rows in f32 with many tokens.
    Whole,
}

impl ProductKernel {
    /// Rows that a thread takes at a time.
    fn tile(self) -> usize {
        match self {
            Self::Integers | Self::Few => FEW_ROWS,
            Self::Lanes => token_lanes::TILE,
            Self::Widened | Self::Whole => TILE,
        }
    }
}

/// The tokens that matrices are multiplied with.
struct Tokens<'a> {
    /// `[tokens, columns]`.
    x: &'a [f32],
    /// The same, rounded for quantized matrices that are multiplied so.
    eight_bit: Option<EightBitTokens>,
    /// The same for the others, if they are some tens.
    lanes: Option<TokenLanes>,
}

impl<'a> Tokens<'a> {
    fn new(weights: &[&MmapMatrix], x: &'a [f32], precision: TokenPrecision) -> Self {
        let columns = weights[0].columns();
        let is_rounded = precision == TokenPrecision::EightBit && weights.iter().any(|w| w.integer_type().is_some());
        let eight_bit = is_rounded.then(|| EightBitTokens::new(x, columns));
        let mut tokens = Self { x, eight_bit, lanes: None };
        let has_lanes = weights.iter().any(|weight| weight.kernel(&tokens) == ProductKernel::Lanes);
        tokens.lanes = has_lanes.then(|| TokenLanes::new(x, columns));
        tokens
    }
}

/// `y = x Wᵀ` of matrices that read the same input: `x` is `[tokens, columns]`, and `y`, `[tokens, sum of rows]`, holds
/// their outputs side by side. Quantized matrices are multiplied with tokens of this precision.
///
/// # Panics
/// If there is no matrix, or `y` has not one row for each of `x`.
pub fn forward_side_by_side(weights: &[&MmapMatrix], x: &[f32], y: &mut [f32], precision: TokenPrecision) {
    let (width, columns): (usize, _) = (weights.iter().map(|weight| weight.rows()).sum(), weights[0].columns());
    // Callers hand over outputs that are not set.
    assert_eq!(x.len() * width, y.len() * columns, "values of inputs and outputs");
    product(weights, &Tokens::new(weights, x, precision), MatrixMut::new(y, x.len() / columns, width, width));
}

fn product(weights: &[&MmapMatrix], tokens: &Tokens, y: MatrixMut) {
    let (x, columns) = (tokens.x, weights[0].columns());
    let count = x.len() / columns;
    let (mut rest, mut tiles, mut work) = (y, Vec::new(), 0);
    for &weight in weights {
        let (own, others) = rest.split_at_column(weight.rows());
        rest = others;
        let kernel = weight.kernel(tokens);
        if let (ProductKernel::Whole, Some(w)) = (kernel, weight.plain_f32()) {
            let x = MatrixRef::new(x, count, columns, columns);
            let w = MatrixRef::new(w, weight.rows(), columns, columns);
            par_gemm(own, Destination::Overwrite, x, w.transposed(), 1.0);
        } else {
            work += weight.rows() * x.len();
            tiles.extend(own.column_tiles(kernel.tile()).into_iter().map(|(rows, y)| (weight, rows, y)));
        }
    }
    if work < PARALLEL_WORK {
        let mut scratch = Default::default();
        return tiles.into_iter().for_each(|(weight, rows, y)| weight.forward_tile(tokens, rows, y, &mut scratch));
    }
    // One parallel region for all: a decoded token has hundreds of products, and starting threads for each would show.
    tiles
        .into_par_iter()
        .for_each_init(Default::default, |scratch, (weight, rows, y)| weight.forward_tile(tokens, rows, y, scratch));
}

impl RowSource for MmapMatrix {
    fn rows<'a>(&'a self, rows: Range<usize>, columns: Range<usize>, wide: &'a mut Vec<f32>) -> (&'a [f32], usize) {
        if let Some(Slice::F32(values)) = self.ordered_slice(rows.clone()) {
            return (&values[columns.start..], self.columns());
        }
        self.widen_columns(rows, &columns, wide);
        (wide, columns.len())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::weights::mmap_matrix::tests::{blocks, numbers, reversed, weight};
    use crate::weights::storage_dtype::StorageDtype;

    /// Matrices of several types side by side, with the tokens of the quantized ones rounded, and rows in another order.
    #[test]
    fn rounded_tokens_give_nearly_the_products_of_the_values_whatever_is_beside_them() {
        let columns = 288;
        let matrices = [
            blocks(70, columns),
            weight(StorageDtype::BF16, 33, columns),
            reversed(&blocks(40, columns)),
            weight(StorageDtype::F32, 31, columns),
        ];
        let all: Vec<&MmapMatrix> = matrices.iter().collect();
        let width: usize = matrices.iter().map(MmapMatrix::rows).sum();
        for tokens in [1, 5, 19] {
            // No whole numbers: their rounding would be exact.
            let x: Vec<f32> = (0..tokens * columns).map(|i| (i as f32 * 0.7).sin()).collect();
            let mut products = [TokenPrecision::Exact, TokenPrecision::EightBit].map(|precision| {
                let mut y = vec![9.0; tokens * width];
                forward_side_by_side(&all, &x, &mut y, precision);
                y
            });
            let [exact, rounded] = &mut products;
            let mut moved = 0.0f32;
            for (i, (exact, rounded)) in exact.iter().zip(rounded).enumerate() {
                let is_quantized = i % width < 70 || (103..143).contains(&(i % width));
                let difference = (exact - *rounded).abs();
                assert!(difference <= if is_quantized { 1.0 } else { 0.0 }, "{i}: {exact} {rounded}");
                moved = moved.max(difference);
            }
            assert!(moved > 1e-3);
        }
    }

    #[test]
    fn quantized_and_reordered_matrices_give_the_products_of_their_values() {
        for (tokens, rows, columns) in [(3, 70, 96), (19, 70, 96), (5, 1030, 1056), (19, 1030, 1056), (100, 130, 1056)]
        {
            let (x, dy) = (numbers(tokens * columns, 5), numbers(tokens * rows, 3));
            let plain = [StorageDtype::F32, StorageDtype::BF16, StorageDtype::F16];
            let plain = plain.map(|dtype| reversed(&weight(dtype, rows, columns)));
            let quantized = [blocks(rows, columns), reversed(&blocks(rows, columns))];
            for matrix in plain.into_iter().chain(quantized) {
                let values = MmapMatrix::from_values(matrix.values().into_owned(), rows, columns).unwrap();
                let product = |matrix: &MmapMatrix| {
                    let (mut y, mut dx) = (vec![9.0; tokens * rows], vec![1.0; tokens * columns]);
                    matrix.forward(&x, &mut y, rows, 0..rows);
                    matrix.backward(MatrixRef::new(&dy, tokens, rows, rows), &mut dx, Destination::Add);
                    (y, dx)
                };
                assert!(product(&matrix) == product(&values), "{tokens} {rows} {columns}");
            }
        }
    }

    /// Widths that no tile divides, few and many tokens, and products that one thread makes and that all make.
    const SHAPES: [(usize, usize, usize); 6] =
        [(3, 70, 33), (19, 70, 33), (5, 1030, 1031), (19, 1030, 1031), (100, 70, 33), (100, 130, 1031)];

    #[test]
    fn tiles_of_any_width_and_precision_give_the_product() {
        for (tokens, rows, columns) in SHAPES {
            let (x, width) = (numbers(tokens * columns, 5), rows + 3);
            for dtype in [StorageDtype::F32, StorageDtype::BF16, StorageDtype::F16] {
                let mapped = weight(dtype, rows, columns);
                let mut y = vec![9.0; tokens * width];
                mapped.forward(&x, &mut y, width, 2..2 + rows);
                let w = mapped.values();
                for (t, y) in y.chunks_exact(width).enumerate() {
                    let x = &x[t * columns..][..columns];
                    let expected = w.chunks_exact(columns).map(|w| x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>());
                    assert!(y[2..2 + rows].iter().copied().eq(expected), "{dtype:?} {tokens} {rows} {columns}");
                    assert_eq!((y[0], y[1], y[width - 1]), (9.0, 9.0, 9.0));
                }
            }
        }
    }

    #[test]
    fn its_backward_is_the_transposed_product_added_or_written() {
        for (tokens, rows, columns) in SHAPES {
            let dy = numbers(tokens * rows, 3);
            for dtype in [StorageDtype::F32, StorageDtype::BF16, StorageDtype::F16] {
                let mapped = weight(dtype, rows, columns);
                let (mut written, mut added) = (vec![9.0; tokens * columns], vec![1.0; tokens * columns]);
                mapped.backward(MatrixRef::new(&dy, tokens, rows, rows), &mut written, Destination::Overwrite);
                mapped.backward(MatrixRef::new(&dy, tokens, rows, rows), &mut added, Destination::Add);
                let w = mapped.values();
                for (t, dx) in written.chunks_exact(columns).enumerate() {
                    for c in [0, 1, 31, columns / 2, columns - 1] {
                        let expected: f32 = (0..rows).map(|r| dy[t * rows + r] * w[r * columns + c]).sum();
                        assert_eq!(dx[c], expected, "{dtype:?} {tokens} {rows} {columns}");
                        assert_eq!(added[t * columns + c], expected + 1.0);
                    }
                }
            }
        }
    }
}
