//! AdamW by candle's own ops, for devices without a kernel.

use crate::optim::parameter::{AdamWUpdate, BETA1, BETA2, EPSILON, Parameter};
use anyhow::Result;
use candle_core::{Device, Result as CandleResult, Tensor};
use std::ops::Range;

impl Parameter {
    /// The same as [`Parameter::step`] by candle's own ops over the whole variable, with what each row's update does to
    /// it as columns. Rows without an update keep their values and moments, whatever their gradient is.
    pub(crate) fn plain_step(&self, gradient: &Tensor, parts: &[(Range<usize>, AdamWUpdate)]) -> Result<()> {
        let (_, rows, columns) = self.moments().dims3()?;
        let of_rows = Columns::new(rows, columns, parts, gradient.device())?;
        let mut g = gradient.reshape((rows, columns))?;
        if parts.iter().map(|(part, _)| part.len()).sum::<usize>() < rows * columns {
            // A gradient that is no number would stay one times zero.
            let moves = of_rows.moves.gt(0f32)?.broadcast_as((rows, columns))?;
            g = moves.where_cond(&g, &g.zeros_like()?)?;
        }
        let g = g.broadcast_mul(&of_rows.clip)?;
        let toward = |moment: usize, [kept, moved]: &[Tensor; 2], target: Tensor| -> CandleResult<Tensor> {
            let kept = self.moments().get(moment)?.broadcast_mul(kept)?;
            let moved = (kept + target.broadcast_mul(moved)?)?;
            self.moments().slice_set(&moved.unsqueeze(0)?, 0, moment)?;
            Ok(moved)
        };
        let m = toward(0, &of_rows.first, g.clone())?;
        let v = toward(1, &of_rows.second, g.sqr()?)?;
        let spread = (v.sqrt()?.broadcast_mul(&of_rows.root)? + f64::from(EPSILON as f32))?;
        let along = m.broadcast_mul(&of_rows.step)?.div(&spread)?;
        let p = self.variable().as_tensor().detach().reshape((rows, columns))?;
        let moved = (p.broadcast_mul(&of_rows.keep)? - along)?;
        Ok(self.variable().set(&moved.reshape(self.variable().shape())?)?)
    }
}

/// What an update does to each row of a parameter, as columns `[rows, 1]` on its device; a row without one stays.
struct Columns {
    /// 1 where a row moves.
    moves: Tensor,
    clip: Tensor,
    /// What is kept of the first moment, and what the gradient adds to it.
    first: [Tensor; 2],
    /// The same of the second, and the gradient's square.
    second: [Tensor; 2],
    /// `1 / sqrt(1 - β2ᵗ)`.
    root: Tensor,
    /// `lr / (1 - β1ᵗ)`.
    step: Tensor,
    /// `1 - lr λ`.
    keep: Tensor,
}

impl Columns {
    /// All of them go to the device at once.
    fn new(rows: usize, columns: usize, parts: &[(Range<usize>, AdamWUpdate)], device: &Device) -> CandleResult<Self> {
        let still = [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let mut values: Vec<f32> = still.iter().flat_map(|&value| std::iter::repeat_n(value, rows)).collect();
        for (part, update) in parts {
            let t = update.number as i32;
            let of_update = [
                1.0,
                update.clip,
                BETA1,
                f64::from(1.0 - BETA1 as f32),
                BETA2,
                f64::from(1.0 - BETA2 as f32),
                1.0 / (1.0 - BETA2.powi(t)).sqrt(),
                update.rate / (1.0 - BETA1.powi(t)),
                1.0 - update.rate * update.weight_decay,
            ];
            for (column, value) in values.chunks_exact_mut(rows.max(1)).zip(of_update) {
                column[part.start / columns..part.end / columns].fill(value as f32);
            }
        }
        let all = Tensor::from_vec(values, (still.len(), rows, 1), device)?;
        Ok(Self {
            moves: all.get(0)?,
            clip: all.get(1)?,
            first: [all.get(2)?, all.get(3)?],
            second: [all.get(4)?, all.get(5)?],
            root: all.get(6)?,
            step: all.get(7)?,
            keep: all.get(8)?,
        })
    }
}
