//! The AdamW step composed of candle ops, for devices without a fused kernel.

use crate::error::Result;
use crate::optim::adamw_update::{AdamWUpdate, BETA1, BETA2, EPSILON};
use crate::optim::parameter::Parameter;
use candle_core::{Device, Result as CandleResult, Tensor};
use std::ops::Range;

/// Updates the given value ranges of a parameter. Rows without an update keep their values and moments, whatever their
/// gradient is.
pub(crate) fn composed_step(
    parameter: &Parameter,
    gradient: &Tensor,
    parts: &[(Range<usize>, AdamWUpdate)],
) -> Result<()> {
    let (_, rows, columns) = parameter.moments().dims3()?;
    let by_row = RowCoefficients::new(rows, columns, parts, gradient.device())?;
    let mut g = gradient.reshape((rows, columns))?;
    if parts.iter().map(|(part, _)| part.len()).sum::<usize>() < rows * columns {
        // Zero times NaN is NaN: rows that are not updated are masked out.
        let mask = by_row.is_updated.gt(0f32)?.broadcast_as((rows, columns))?;
        g = mask.where_cond(&g, &g.zeros_like()?)?;
    }
    let g = g.broadcast_mul(&by_row.clip)?;
    let update_moment = |moment: usize, [old, new]: &[Tensor; 2], target: Tensor| -> CandleResult<Tensor> {
        let kept = parameter.moments().get(moment)?.broadcast_mul(old)?;
        let updated = (kept + target.broadcast_mul(new)?)?;
        parameter.moments().slice_set(&updated.unsqueeze(0)?, 0, moment)?;
        Ok(updated)
    };
    let m = update_moment(0, &by_row.first, g.clone())?;
    let v = update_moment(1, &by_row.second, g.sqr()?)?;
    let denominator = (v.sqrt()?.broadcast_mul(&by_row.root)? + f64::from(EPSILON as f32))?;
    let delta = m.broadcast_mul(&by_row.step_size)?.div(&denominator)?;
    let p = parameter.variable().as_tensor().detach().reshape((rows, columns))?;
    let updated = (p.broadcast_mul(&by_row.keep)? - delta)?;
    Ok(parameter.variable().set(&updated.reshape(parameter.variable().shape())?)?)
}

/// The coefficients of the update of each row, as columns `[rows, 1]` on the device; a row without an update keeps its
/// values.
struct RowCoefficients {
    /// 1 for rows that are updated.
    is_updated: Tensor,
    clip: Tensor,
    /// Coefficients of the first moment and of the gradient.
    first: [Tensor; 2],
    /// Coefficients of the second moment and of the squared gradient.
    second: [Tensor; 2],
    /// `1 / sqrt(1 - β2ᵗ)`.
    root: Tensor,
    /// `lr / (1 - β1ᵗ)`.
    step_size: Tensor,
    /// `1 - lr λ`.
    keep: Tensor,
}

impl RowCoefficients {
    /// Builds all columns in one transfer to the device.
    fn new(rows: usize, columns: usize, parts: &[(Range<usize>, AdamWUpdate)], device: &Device) -> CandleResult<Self> {
        let unchanged = [0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        let mut values: Vec<f32> = unchanged.iter().flat_map(|&value| std::iter::repeat_n(value, rows)).collect();
        for (part, update) in parts {
            let t = update.step as i32;
            let coefficients = [
                1.0,
                update.clip,
                BETA1,
                f64::from(1.0 - BETA1 as f32),
                BETA2,
                f64::from(1.0 - BETA2 as f32),
                1.0 / (1.0 - BETA2.powi(t)).sqrt(),
                update.lr / (1.0 - BETA1.powi(t)),
                1.0 - update.lr * update.weight_decay,
            ];
            for (column, value) in values.chunks_exact_mut(rows.max(1)).zip(coefficients) {
                column[part.start / columns..part.end / columns].fill(value as f32);
            }
        }
        let all = Tensor::from_vec(values, (unchanged.len(), rows, 1), device)?;
        Ok(Self {
            is_updated: all.get(0)?,
            clip: all.get(1)?,
            first: [all.get(2)?, all.get(3)?],
            second: [all.get(4)?, all.get(5)?],
            root: all.get(6)?,
            step_size: all.get(7)?,
            keep: all.get(8)?,
        })
    }
}
