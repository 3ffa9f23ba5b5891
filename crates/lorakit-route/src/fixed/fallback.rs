//! What other patches would add, at the weight that a row's own weights leave of one.

use candle_core::{Result, Tensor};
use lorakit_lora::{Outputs, Patch, Patches, SequenceBatch};
use std::sync::Arc;

/// A remainder below this counts as zero.
const NEGLIGIBLE: f32 = 1e-6;

/// The patches, each at the weight `1 - sum of a row's weights`; a row without weights gets none.
pub(crate) fn fallback(patches: Patches) -> Patches {
    patches.map(|patch| Arc::new(FallbackPatch(patch)))
}

struct FallbackPatch(Arc<dyn Patch>);

impl Patch for FallbackPatch {
    fn add(&self, x: &Tensor, rows: &SequenceBatch, out: &mut Outputs) -> Result<()> {
        let left = |weights: &Arc<[f32]>| Some(1.0 - weights.iter().sum::<f32>()).filter(|left| *left > NEGLIGIBLE);
        let of_row = rows.iter().map(|row| row.weights.as_ref().and_then(left).unwrap_or(0.0));
        let of_token: Vec<f32> = of_row.zip(rows.iter()).flat_map(|(left, row)| vec![left; row.len]).collect();
        if !of_token.iter().any(|left| *left > 0.0) {
            return Ok(());
        }
        let mut whole = Outputs::new(out.tensor().zeros_like()?);
        self.0.add(x, rows, &mut whole)?;
        let whole = whole.into_tensor();
        let of_token = Tensor::from_vec(of_token, (rows.tokens(), 1), whole.device())?.to_dtype(whole.dtype())?;
        out.add(&whole.broadcast_mul(&of_token)?)
    }
}
