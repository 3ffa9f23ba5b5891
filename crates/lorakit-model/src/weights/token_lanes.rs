//! Products of some tens of tokens with the rows of a matrix, as in decoding many texts at once: between the memory
//! that the weights are read from and the machine's arithmetic.
//!
//! A matrix product copies the weights into a layout of its own first, which so few tokens do not pay for. Here the tokens
//! are copied, one per lane of a vector, and each weight is read once, where it is, and multiplied with all of them. A sum
//! goes through the columns in order: the products of a token do not depend on the tokens beside it.

use lorakit_lora::kernels::simd::{self, Simd, WithSimd};
use pulp::bytemuck::cast_slice;
use std::ops::{Range, RangeInclusive};

/// Numbers of tokens for which this is faster than the products of few tokens and than matrix products.
pub(super) const TOKENS: RangeInclusive<usize> = 9..=96;

/// Tokens of a block: two of AVX2's vectors, or one of AVX-512's.
const BLOCK: usize = 16;

/// Columns that are multiplied at a time: those of all tokens stay in the second-level cache.
const COLUMNS: usize = 1024;

/// Rows of a matrix that one thread takes at a time: a multiple of the rows that any machine multiplies at a time.
pub(super) const TILE: usize = 48;

/// Tokens `[tokens, columns]` as lanes: `[blocks][columns][lanes of a block]`, zero past the last token.
pub(super) struct TokenLanes {
    values: Vec<f32>,
    columns: usize,
}

impl TokenLanes {
    pub(super) fn new(x: &[f32], columns: usize) -> Self {
        let tokens = x.len() / columns;
        let mut values = vec![0.0; tokens.div_ceil(BLOCK) * BLOCK * columns];
        for (block, x) in values.chunks_exact_mut(BLOCK * columns).zip(x.chunks(BLOCK * columns)) {
            let tokens: Vec<&[f32]> = x.chunks_exact(columns).collect();
            for (column, lanes) in block.chunks_exact_mut(BLOCK).enumerate() {
                lanes.iter_mut().zip(&tokens).for_each(|(lane, token)| *lane = token[column]);
            }
        }
        Self { values, columns }
    }
}

/// Where rows of a matrix come from.
pub(super) trait RowSource {
    /// Some columns of some rows as f32, and how far apart the rows are; written to `wide` unless they are stored so.
    fn rows<'a>(&'a self, rows: Range<usize>, columns: Range<usize>, wide: &'a mut Vec<f32>) -> (&'a [f32], usize);
}

/// `y[t * stride + r] = <row r, token t>` for `count` rows.
pub(super) struct LaneProducts<'a, R> {
    pub(super) lanes: &'a TokenLanes,
    pub(super) source: &'a R,
    pub(super) rows: Range<usize>,
    /// `[tokens, rows]`.
    pub(super) y: &'a mut [f32],
    pub(super) wide: &'a mut Vec<f32>,
}

impl<R: RowSource> LaneProducts<'_, R> {
    pub(super) fn run(self) {
        simd::dispatch(self)
    }
}

impl<R: RowSource> WithSimd for LaneProducts<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { lanes, source, rows, y, wide } = self;
        let most = if S::REGISTER_COUNT >= 32 { 12 } else { 6 };
        for start in (0..lanes.columns).step_by(COLUMNS) {
            let columns = start..(start + COLUMNS).min(lanes.columns);
            for first in rows.clone().step_by(most) {
                let panel = first..(first + most).min(rows.end);
                let (values, stride) = source.rows(panel.clone(), columns.clone(), wide);
                let panel =
                    Panel { lanes, values, stride, columns: columns.clone(), width: rows.len(), add: start > 0 };
                let at = first - rows.start;
                panel.products(simd, most.min(rows.end - first), &mut y[at..]);
            }
        }
    }
}

/// Some columns of some rows, and the tokens that they are multiplied with.
struct Panel<'a> {
    lanes: &'a TokenLanes,
    values: &'a [f32],
    stride: usize,
    columns: Range<usize>,
    /// How far apart the tokens of the products are.
    width: usize,
    /// Whether the products are added to those of other columns.
    add: bool,
}

impl Panel<'_> {
    /// The products of `count` rows: `y[t * width + r]`, from the first of them on.
    #[inline(always)]
    fn products<S: Simd>(&self, simd: S, count: usize, y: &mut [f32]) {
        let blocks = self.lanes.values.chunks_exact(BLOCK * self.lanes.columns);
        for (block, y) in blocks.zip(y.chunks_mut(BLOCK * self.width)) {
            let x = &block[self.columns.start * BLOCK..self.columns.end * BLOCK];
            let mut row = 0;
            while row < count {
                row += match count - row {
                    12.. => self.rows::<S, 12>(simd, row, x, &mut y[row..]),
                    6.. => self.rows::<S, 6>(simd, row, x, &mut y[row..]),
                    3.. => self.rows::<S, 3>(simd, row, x, &mut y[row..]),
                    _ => self.rows::<S, 1>(simd, row, x, &mut y[row..]),
                };
            }
        }
    }

    /// The products of `ROWS` rows with a block of tokens; returns `ROWS`.
    #[inline(always)]
    fn rows<S: Simd, const ROWS: usize>(&self, simd: S, first: usize, x: &[f32], y: &mut [f32]) -> usize {
        let w = &self.values[first * self.stride..];
        let columns = self.columns.len();
        let w: [&[f32]; ROWS] = std::array::from_fn(|row| &w[row * self.stride..][..columns]);
        match S::F32_LANES {
            16 => self.write(cast_slice(sums::<S, ROWS, 1>(simd, w, x).as_flattened()), y),
            8 => self.write(cast_slice(sums::<S, ROWS, 2>(simd, w, x).as_flattened()), y),
            4 => self.write(cast_slice(sums::<S, ROWS, 4>(simd, w, x).as_flattened()), y),
            _ => self.write(plain_sums(w, x).as_flattened(), y),
        }
        ROWS
    }

    /// Writes or adds sums `[rows][lanes of a block]` to `y`.
    #[inline(always)]
    fn write(&self, sums: &[f32], y: &mut [f32]) {
        for (token, y) in y.chunks_mut(self.width).enumerate() {
            for (y, sums) in y.iter_mut().zip(sums.as_chunks::<BLOCK>().0) {
                *y = if self.add { *y + sums[token] } else { sums[token] };
            }
        }
    }
}

/// The sums of `ROWS` rows for a block of tokens of `VECTORS` vectors.
#[inline(always)]
fn sums<S: Simd, const ROWS: usize, const VECTORS: usize>(
    simd: S,
    w: [&[f32]; ROWS],
    x: &[f32],
) -> [[S::f32s; VECTORS]; ROWS] {
    let columns = w[0].len();
    let x = S::as_simd_f32s(x).0.as_chunks::<VECTORS>().0;
    let (x, w) = (&x[..columns], w.map(|w| &w[..columns]));
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; ROWS];
    for column in 0..columns {
        let x = x[column];
        for row in 0..ROWS {
            let w = simd.splat_f32s(w[row][column]);
            for vector in 0..VECTORS {
                sums[row][vector] = simd.mul_add_e_f32s(w, x[vector], sums[row][vector]);
            }
        }
    }
    sums
}

/// The same for machines of other vectors.
#[inline(always)]
fn plain_sums<const ROWS: usize>(w: [&[f32]; ROWS], x: &[f32]) -> [[f32; BLOCK]; ROWS] {
    let mut sums = [[0.0; BLOCK]; ROWS];
    for (column, x) in x.as_chunks::<BLOCK>().0.iter().enumerate() {
        for (sums, w) in sums.iter_mut().zip(w) {
            sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += w[column] * x);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use lorakit_lora::kernels::simd::SimdLevel;

    /// Rows in memory, with values that are not rows between them.
    struct Strided<'a>(&'a [f32], usize);

    impl RowSource for Strided<'_> {
        fn rows<'a>(&'a self, rows: Range<usize>, columns: Range<usize>, _: &'a mut Vec<f32>) -> (&'a [f32], usize) {
            (&self.0[rows.start * self.1 + columns.start..], self.1)
        }
    }

    /// The products of some rows with the tokens `x`, `[tokens, columns]`.
    fn products(level: SimdLevel, source: &Strided, rows: Range<usize>, (x, columns): (&[f32], usize)) -> Vec<f32> {
        let (lanes, mut y) = (TokenLanes::new(x, columns), vec![9.0; x.len() / columns * rows.len()]);
        level.dispatch(LaneProducts { lanes: &lanes, source, rows, y: &mut y, wide: &mut Vec::new() });
        y
    }

    /// Small integers, whose sums are exact in any order; rows and tokens that fill no panel or block, and more columns
    /// than are multiplied at a time.
    #[test]
    fn products_of_any_number_of_tokens_and_rows_match_the_definition() {
        let integers =
            |count: usize, step: usize| -> Vec<f32> { (0..count).map(|i| ((i * step) % 17) as f32 - 8.0).collect() };
        for (tokens, count, columns) in
            [(9, 5, 31), (16, 48, 64), (17, 13, 1), (33, 29, COLUMNS + 70), (96, 1, 2 * COLUMNS)]
        {
            let (w, x) = (integers((count + 2) * (columns + 3), 7), integers(tokens * columns, 5));
            for level in SimdLevel::available() {
                let y = products(level, &Strided(&w, columns + 3), 2..2 + count, (&x[..], columns));
                for (at, y) in y.iter().enumerate() {
                    let w = &w[(2 + at % count) * (columns + 3)..][..columns];
                    let x = &x[at / count * columns..][..columns];
                    let expected = w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>();
                    assert_eq!(*y, expected, "{level:?} {tokens} {count} {columns} {at}");
                }
            }
        }
    }

    /// Values whose sums depend on their order, in panels of every size, and a token of NaN beside them.
    #[test]
    fn the_products_of_a_token_do_not_depend_on_the_others() {
        let (count, columns) = (29, COLUMNS + 70);
        let values = |count: usize, step: f32| -> Vec<f32> { (0..count).map(|i| (i as f32 * step).sin()).collect() };
        let (w, mut x) = (values(count * columns, 0.7), values(33 * columns, 0.3));
        x[columns..2 * columns].fill(f32::NAN);
        for level in SimdLevel::available() {
            let first = |tokens: usize| -> Vec<u32> {
                let y = products(level, &Strided(&w, columns), 0..count, (&x[..tokens * columns], columns));
                y[..count].iter().map(|y| y.to_bits()).collect()
            };
            let alone = first(1);
            assert!([9, 16, 17, 33].into_iter().all(|tokens| first(tokens) == alone), "{level:?}");
            let row = |row: usize| products(level, &Strided(&w, columns), row..row + 1, (&x[..columns], columns));
            assert!((0..count).flat_map(row).map(f32::to_bits).eq(alone), "{level:?}, rows alone");
        }
    }
}
