//! Dropout on the input of a LoRA from counter-based random streams: a mask depends only on its seed, expert, step, row
//! and site, never on which rows or experts share the batch.

use candle_core::{DType, Result, Tensor, bail};
use lorakit_format::rng::{CounterRng, RngCore};
use lorakit_lora::kernels::op;
use lorakit_lora::kernels::vjp::with_vjp;
use lorakit_lora::{DropoutMask, SequenceBatch};
use rayon::prelude::*;
use std::sync::Arc;

/// The dropout of one batch.
#[derive(Clone)]
pub struct Dropout {
    /// Values are dropped where a random 16-bit number is below this.
    threshold: u16,
    /// The key of each row's masks.
    keys: Arc<[[u8; 32]]>,
}

impl Dropout {
    /// Dropout with probability `rate`, and one key for each row of the batch.
    pub fn new(rate: f64, keys: Arc<[[u8; 32]]>) -> Self {
        Self { threshold: (rate * 65536.0).round() as u16, keys }
    }

    /// Applies the mask of `site` to `x`, `[tokens, d]`; kept values are scaled up.
    pub fn apply(&self, x: &Tensor, rows: &SequenceBatch, site: usize) -> Result<Tensor> {
        if self.threshold == 0 {
            return Ok(x.clone());
        }
        if x.device().is_cpu() {
            return op::unary(self.mask(rows, x.dim(1)?, site)?, x);
        }
        self.apply_composed(x, rows, site)
    }

    /// [`Dropout::apply`] composed of candle ops. The mask, which is the same on every device, is drawn on the CPU and
    /// copied to the device of `x`, one byte per value, where it stays until the backward.
    fn apply_composed(&self, x: &Tensor, rows: &SequenceBatch, site: usize) -> Result<Tensor> {
        let DropoutMask { kept, scale } = self.mask(rows, x.dim(1)?, site)?;
        let kept = Tensor::from_vec(kept, x.shape(), x.device())?;
        let masked = move |values: &Tensor| values * (kept.to_dtype(DType::F32)? * f64::from(scale))?;
        with_vjp(x, masked(&x.detach())?, masked)
    }

    /// The mask of `site` for a batch of `rows`, `[tokens, d]`.
    pub fn mask(&self, rows: &SequenceBatch, d: usize, site: usize) -> Result<DropoutMask> {
        if rows.len() != self.keys.len() {
            bail!("dropout has keys for {} rows, found {} rows", self.keys.len(), rows.len());
        }
        let threshold = self.threshold;
        let rows: Vec<_> = rows.iter().zip(self.keys.iter()).collect();
        let parts: Vec<Vec<u8>> = rows
            .par_iter()
            .map(|(row, key)| {
                let mut bytes = vec![0; row.len * d * 2];
                CounterRng::substream(**key, site as u64).fill_bytes(&mut bytes);
                let (draws, _) = bytes.as_chunks::<2>();
                draws.iter().map(|&draw| u8::from(u16::from_le_bytes(draw) >= threshold)).collect()
            })
            .collect();
        Ok(DropoutMask { kept: parts.concat(), scale: 65536.0 / (65536.0 - f32::from(threshold)) })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn composed_masks_equal_those_of_the_kernel() {
        let rows = SequenceBatch::packed([4, 1, 6]);
        let keys: Arc<[[u8; 32]]> = (0..3).map(|row| [row; 32]).collect();
        let dropout = Dropout::new(0.3, keys);
        let x = Var::from_tensor(&Tensor::arange(1f32, 78.0, &Device::Cpu).unwrap().reshape((11, 7)).unwrap()).unwrap();
        let (kernel, composed) = (dropout.apply(&x, &rows, 5).unwrap(), dropout.apply_composed(&x, &rows, 5).unwrap());
        let values = kernel.to_vec2::<f32>().unwrap();
        assert_eq!(values, composed.to_vec2::<f32>().unwrap());
        assert!(values.iter().flatten().any(|v| *v == 0.0) && values.iter().flatten().any(|v| *v > 0.0));
        let gradient = |y: &Tensor| {
            let store = (y * x.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
            store.get(x.as_tensor()).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(gradient(&kernel), gradient(&composed));
    }
}
