//! The multiplier and the soft cap of logits (Granite, Gemma 2).

use crate::layer::soft_cap::{SoftCap, composed_derivative, composed_soft_cap, derivative};
use candle_core::{Result, Tensor};
use lorakit_lora::kernels::simd::{Simd, WithSimd};

/// What becomes of logits after the head's matrix, bias and patch: `cap tanh(multiplier logit / cap)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LogitScale {
    /// What they are multiplied with.
    pub multiplier: f64,
    /// The soft cap, if there is one.
    pub soft_cap: Option<f64>,
}

impl LogitScale {
    /// Logits stay as they are.
    pub const NONE: Self = Self { multiplier: 1.0, soft_cap: None };

    /// The scaled logits.
    pub(crate) fn composed(self, logits: Tensor) -> Result<Tensor> {
        let logits = if self.multiplier == 1.0 { logits } else { (logits * self.multiplier)? };
        match self.soft_cap {
            Some(cap) => composed_soft_cap(&logits, cap),
            None => Ok(logits),
        }
    }

    /// The gradient of the logits before from that of the scaled ones.
    pub(crate) fn composed_gradient(self, scaled: &Tensor, gradient: Tensor) -> Result<Tensor> {
        let gradient = match self.soft_cap {
            Some(cap) => (gradient * composed_derivative(scaled, cap)?)?,
            None => gradient,
        };
        if self.multiplier == 1.0 { Ok(gradient) } else { gradient * self.multiplier }
    }

    /// Scales the logits of one token.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(self, simd: S, row: &mut [f32]) {
        if self.multiplier != 1.0 {
            let multiplier = self.multiplier as f32;
            row.iter_mut().for_each(|logit| *logit *= multiplier);
        }
        if let Some(cap) = self.soft_cap {
            SoftCap { values: row, cap: cap as f32 }.with_simd(simd);
        }
    }

    /// The gradient of one token's logits before, in place of that of the `scaled` ones.
    #[inline(always)]
    pub(crate) fn gradient(self, scaled: &[f32], gradient: &mut [f32]) {
        if let Some(cap) = self.soft_cap {
            gradient.iter_mut().zip(scaled).for_each(|(g, &y)| *g *= derivative(y, cap as f32));
        }
        if self.multiplier != 1.0 {
            let multiplier = self.multiplier as f32;
            gradient.iter_mut().for_each(|g| *g *= multiplier);
        }
    }
}
