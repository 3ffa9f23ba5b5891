//! A patch that changes outputs by rounding alone, to measure what rounding does to a model's logits.

use crate::patch::{Outputs, Patch};
use crate::sequence_batch::SequenceBatch;
use candle_core::{DType, Device, Result, Tensor};

/// Flips the last bit of every output of its site in f32: by one unit in the last place, up or down as the bit happens to
/// be. It is a probe, not differentiable.
pub struct RoundingNoise;

impl Patch for RoundingNoise {
    fn add(&self, _x: &Tensor, _batch: &SequenceBatch, out: &mut Outputs) -> Result<()> {
        let y = out.tensor();
        let values = y.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let change: Vec<f32> = values.iter().map(|&value| f32::from_bits(value.to_bits() ^ 1) - value).collect();
        let change = Tensor::from_vec(change, y.shape(), &Device::Cpu)?.to_device(y.device())?.to_dtype(y.dtype())?;
        out.add(&change)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn outputs_change_by_one_unit_in_the_last_place() {
        let y = [[1.0f32, -3.5, 1e-20], [0.1, 1e20, 7.0]];
        let mut out = Outputs::new(Tensor::new(&y, &Device::Cpu).unwrap());
        let x = Tensor::zeros((2, 1), DType::F32, &Device::Cpu).unwrap();
        RoundingNoise.add(&x, &SequenceBatch::packed([2]), &mut out).unwrap();
        let changed = out.into_tensor().to_vec2::<f32>().unwrap();
        for (before, after) in y.iter().flatten().zip(changed.iter().flatten()) {
            assert_eq!(before.to_bits() ^ 1, after.to_bits());
        }
    }
}
