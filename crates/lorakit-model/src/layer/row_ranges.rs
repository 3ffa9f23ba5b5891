//! Some rows of a tensor, in ranges: taken out of it, and put in their place.

use candle_core::{Result, Shape, Tensor, bail};
use lorakit_lora::kernels::op::{self, Input, Op};
use lorakit_lora::kernels::uninit_vec::uninit_vec;
use std::ops::Range;
use std::sync::Arc;

/// Ranges of rows, ascending and apart from each other.
#[derive(Clone, Debug)]
pub(crate) struct RowRanges(Arc<[Range<usize>]>);

impl RowRanges {
    pub(crate) fn new(ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        Self(ranges.into_iter().collect())
    }

    /// Number of rows.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(ExactSizeIterator::len).sum()
    }

    /// These rows of `x`, `[rows, d]`, one after another. Differentiable.
    pub(crate) fn of(&self, x: &Tensor) -> Result<Tensor> {
        op::unary(TakeRows(self.clone()), x)
    }

    /// `x`, `[rows, d]`, with `own` in place of these rows. Differentiable.
    pub(crate) fn replaced(&self, x: &Tensor, own: &Tensor) -> Result<Tensor> {
        op::binary(ReplaceRows(self.clone()), x, own)
    }

    /// Where rows that are among these, given by their indices among all and ascending, are among these.
    pub(crate) fn positions(&self, rows: &[u32]) -> Vec<u32> {
        let (mut ranges, mut before) = (self.0.iter().peekable(), 0);
        let mut position = |&row: &u32| {
            while let Some(range) = ranges.next_if(|range| range.end <= row as usize) {
                before += range.len();
            }
            let start = ranges.peek().map_or(row as usize, |range| range.start);
            (before + row as usize - start) as u32
        };
        rows.iter().map(&mut position).collect()
    }

    /// The ops of [`RowRanges::of`] and [`RowRanges::replaced`].
    pub(crate) fn ops(&self) -> (TakeRows, ReplaceRows) {
        (TakeRows(self.clone()), ReplaceRows(self.clone()))
    }

    /// Calls `copy` with each range of these rows among all, as ranges of values, and of the same rows alone.
    fn for_each(&self, d: usize, mut copy: impl FnMut(Range<usize>, Range<usize>)) {
        let mut at = 0;
        for range in self.0.iter() {
            copy(range.start * d..range.end * d, at..at + range.len() * d);
            at += range.len() * d;
        }
    }

    /// Fails if a range is not within `rows`.
    fn ensure_within(&self, rows: usize) -> Result<()> {
        match self.0.iter().find(|range| range.end > rows) {
            Some(range) => bail!("rows {range:?} of a tensor of {rows} rows"),
            None => Ok(()),
        }
    }
}

/// Some rows of a tensor.
pub(crate) struct TakeRows(RowRanges);

/// A tensor with some of its rows replaced.
pub(crate) struct ReplaceRows(RowRanges);

impl Op<1> for TakeRows {
    fn name(&self) -> &'static str {
        "take-rows"
    }

    fn forward(&self, [x]: [Input; 1]) -> Result<(Vec<f32>, Shape)> {
        let (rows, d) = x.matrix()?;
        self.0.ensure_within(rows)?;
        let count = self.0.count();
        let write = |y: &mut [f32]| self.0.for_each(d, |all, own| y[own].copy_from_slice(&x.values[all]));
        // SAFETY: the ranges, one after another, are all rows of `y`.
        Ok((unsafe { uninit_vec(count * d, write) }, (count, d).into()))
    }

    fn backward(&self, [x]: [Input; 1], dy: &[f32], _: [bool; 1]) -> Result<[Option<Vec<f32>>; 1]> {
        let mut dx = vec![0.0; x.values.len()];
        self.0.for_each(x.matrix()?.1, |all, own| dx[all].copy_from_slice(&dy[own]));
        Ok([Some(dx)])
    }
}

impl Op<2> for ReplaceRows {
    fn name(&self) -> &'static str {
        "replace-rows"
    }

    fn forward(&self, [x, own]: [Input; 2]) -> Result<(Vec<f32>, Shape)> {
        let ((rows, d), own_dims) = (x.matrix()?, own.matrix()?);
        self.0.ensure_within(rows)?;
        if own_dims != (self.0.count(), d) {
            bail!("{} rows of {d} values were to be replaced by {own_dims:?}", self.0.count());
        }
        let mut y = x.values.to_vec();
        self.0.for_each(d, |all, part| y[all].copy_from_slice(&own.values[part]));
        Ok((y, (rows, d).into()))
    }

    fn backward(&self, [x, own]: [Input; 2], dy: &[f32], [of_x, of_own]: [bool; 2]) -> Result<[Option<Vec<f32>>; 2]> {
        let d = x.matrix()?.1;
        let dx = of_x.then(|| {
            let mut dx = dy.to_vec();
            self.0.for_each(d, |all, _| dx[all].fill(0.0));
            dx
        });
        let down = of_own.then(|| {
            let mut down = vec![0.0; own.values.len()];
            self.0.for_each(d, |all, part| down[part].copy_from_slice(&dy[all]));
            down
        });
        Ok([dx, down])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn rows_are_taken_out_and_put_back_with_their_gradients() {
        let ranges = RowRanges::new([1..2, 3..5]);
        let x = Var::from_tensor(&Tensor::arange(0f32, 10.0, &Device::Cpu).unwrap().reshape((5, 2)).unwrap()).unwrap();
        let own = ranges.of(x.as_tensor()).unwrap();
        assert_eq!(own.to_vec2::<f32>().unwrap(), [[2.0, 3.0], [6.0, 7.0], [8.0, 9.0]]);
        let y = ranges.replaced(x.as_tensor(), &(own * 10.0).unwrap()).unwrap();
        let expected = [[0.0, 1.0], [20.0, 30.0], [4.0, 5.0], [60.0, 70.0], [80.0, 90.0]];
        assert_eq!(y.to_vec2::<f32>().unwrap(), expected);
        let gradients = y.sum_all().unwrap().backward().unwrap();
        let dx = gradients.get(x.as_tensor()).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(dx, [[1.0; 2], [10.0; 2], [1.0; 2], [10.0; 2], [10.0; 2]]);
        assert!(ranges.of(&x.as_tensor().narrow(0, 0, 4).unwrap()).is_err());
        assert!(ranges.replaced(x.as_tensor(), x.as_tensor()).is_err());
    }
}
