//! The deltas of experts whose weights each token has for itself, as a tensor, composed of candle's own ops.
//!
//! `delta[t] = sum_e w[t, e] s_e (x[t] A_eᵀ) B_eᵀ`, computed for each projection as `(g * (x Aᵀ)) B` with
//! `g[t, rank of e] = w[t, e] s_e`. The weights stay on the device, so that no choice has to come back from it; but a token
//! pays for all experts, not only for those that it chose.

use crate::ops::composed_grouped::{ProjectionBlocks, side_by_side};
use crate::ops::grouped_lora::GroupedLora;
use candle_core::{Result, Tensor, bail};
use std::collections::HashMap;
use std::ops::Range;

/// The stacked experts of a site, prepared for a weight per token and expert.
pub struct PerTokenLora {
    parts: Vec<ProjectionStack>,
    /// Number of weights of a token.
    slots: usize,
    /// Columns of the site's output.
    width: usize,
}

/// The experts of one projection.
struct ProjectionStack {
    columns: Range<usize>,
    /// `[ranks, in]`.
    a: Tensor,
    /// `[ranks, columns]`.
    b: Tensor,
    /// For each rank the index of its weight among a token's, `[ranks]`, and its scale, `[1, ranks]`.
    weight: Tensor,
    scale: Tensor,
}

impl PerTokenLora {
    /// The distinct experts `slots` of stacked ones; a token's weights come in that order.
    ///
    /// # Errors
    /// If the experts are not stacked.
    pub fn new(grouped: &GroupedLora, slots: &[usize]) -> Result<Self> {
        let (a, b) = grouped.stacked()?;
        let indices: HashMap<usize, u32> =
            slots.iter().enumerate().map(|(index, &slot)| (slot, index as u32)).collect();
        let part = |(columns, blocks): (Range<usize>, ProjectionBlocks)| {
            let (mut weights, mut scales) = (Vec::new(), Vec::new());
            for (expert, block) in &blocks.0 {
                weights.extend(std::iter::repeat_n(indices[expert], block.b.len()));
                scales.extend(std::iter::repeat_n(block.scale, block.b.len()));
            }
            let (ranks, device) = (scales.len(), a.device());
            Ok(ProjectionStack {
                a: blocks.a(grouped)?,
                b: blocks.b(grouped, &columns)?,
                weight: Tensor::new(weights, device)?,
                scale: Tensor::from_vec(scales, (1, ranks), device)?,
                columns,
            })
        };
        let parts = grouped.by_projection(slots.iter().copied().collect());
        let parts = parts.into_iter().map(part).collect::<Result<_>>()?;
        Ok(Self { parts, slots: slots.len(), width: b.dim(1)? })
    }

    /// The delta over `x`, `[tokens, in]`, with `weights`, `[tokens, slots]`: `[tokens, out]`.
    ///
    /// # Errors
    /// If `weights` has another shape.
    pub fn delta(&self, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
        if weights.dims2()? != (x.dim(0)?, self.slots) {
            bail!("{:?} weights for {} tokens and {} experts", weights.shape(), x.dim(0)?, self.slots);
        }
        let x = x.contiguous()?;
        let part = |part: &ProjectionStack| {
            let factors = weights.index_select(&part.weight, 1)?.broadcast_mul(&part.scale)?;
            let delta = (x.matmul(&part.a.t()?)? * factors)?.matmul(&part.b)?;
            Ok((part.columns.clone(), delta))
        };
        side_by_side(self.parts.iter().map(part).collect::<Result<Vec<_>>>()?, self.width, &x)
    }
}
