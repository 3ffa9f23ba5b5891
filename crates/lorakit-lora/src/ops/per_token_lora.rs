//! The low-rank product of experts that every token weighs for itself, by candle's own ops.
//!
//! With `w[t, e]` what token `t` gives expert `e`, `delta[t] = sum_e w[t, e] s_e (x[t] A_eᵀ) B_eᵀ`, for each projection as
//! `(g * (x Aᵀ)) B` with `g[t, rank of e] = w[t, e] s_e`. The weights are a tensor, so that nothing of a choice has to come
//! back from a device; but a token pays for all experts, and not for its own alone.

use crate::ops::composed_grouped::{ProjectionBlocks, side_by_side};
use crate::ops::grouped_lora::GroupedLora;
use candle_core::{Result, Tensor, bail};
use std::collections::HashMap;
use std::ops::Range;

/// The stacked experts of a site, prepared for weights of every token.
pub struct PerTokenLora {
    parts: Vec<Part>,
    /// Number of weights of a token.
    slots: usize,
    /// Columns of the site's output.
    width: usize,
}

/// The experts of one projection.
struct Part {
    columns: Range<usize>,
    /// `[ranks, in]`.
    a: Tensor,
    /// `[ranks, columns]`.
    b: Tensor,
    /// Which of a token's weights each rank has, and the scale, `[1, ranks]`.
    weight: Tensor,
    scale: Tensor,
}

impl PerTokenLora {
    /// The experts `slots` of stacked ones, each of which stands once; a token's weights come in that order.
    pub fn new(grouped: &GroupedLora, slots: &[usize]) -> Result<Self> {
        let places: HashMap<usize, u32> = slots.iter().enumerate().map(|(place, &slot)| (slot, place as u32)).collect();
        let part = |(columns, filling): (Range<usize>, ProjectionBlocks)| {
            let (mut weights, mut scales) = (Vec::new(), Vec::new());
            for (expert, block) in &filling.0 {
                weights.extend(std::iter::repeat_n(places[expert], block.b.len()));
                scales.extend(std::iter::repeat_n(block.scale, block.b.len()));
            }
            let (ranks, device) = (scales.len(), grouped.a.device());
            Ok(Part {
                a: filling.a(grouped)?,
                b: filling.b(grouped, &columns)?,
                weight: Tensor::new(weights, device)?,
                scale: Tensor::from_vec(scales, (1, ranks), device)?,
                columns,
            })
        };
        let parts = grouped.by_projection(slots.iter().copied().collect());
        let parts = parts.into_iter().map(part).collect::<Result<_>>()?;
        Ok(Self { parts, slots: slots.len(), width: grouped.b.dim(1)? })
    }

    /// The delta over `x`, `[tokens, in]`, with `weights`, `[tokens, slots]`: `[tokens, out]`.
    ///
    /// # Errors
    /// Where there are not as many weights as slots.
    pub fn delta(&self, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
        if weights.dims2()? != (x.dim(0)?, self.slots) {
            bail!("{:?} weights for {} tokens and {} experts", weights.shape(), x.dim(0)?, self.slots);
        }
        let x = x.contiguous()?;
        let part = |part: &Part| {
            let gate = weights.index_select(&part.weight, 1)?.broadcast_mul(&part.scale)?;
            let delta = (x.matmul(&part.a.t()?)? * gate)?.matmul(&part.b)?;
            Ok((part.columns.clone(), delta))
        };
        side_by_side(self.parts.iter().map(part).collect::<Result<Vec<_>>>()?, self.width, &x)
    }
}
