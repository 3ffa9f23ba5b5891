//! Whether tensors that come with an adapter are the base's own.

use crate::error::Result;
use crate::weights::checkpoint::Checkpoint;
use half::{bf16, f16};
use lorakit_adapter::Matrix;

impl Checkpoint {
    /// Whether the tensor `name` has these values, a vector as one row; either may have been rounded to 16 bits. Of a tensor
    /// that the checkpoint does not have, only a bias of zero is known to change nothing.
    ///
    /// # Errors
    /// If the tensor's type is not supported.
    pub fn has_values(&self, name: &str, values: &Matrix) -> Result<bool> {
        let Some(stored) = self.find(name) else {
            return Ok(name.ends_with(".bias") && values.values().iter().all(|value| *value == 0.0));
        };
        let shape = stored.shape();
        if shape.iter().product::<usize>() != values.rows() * values.cols() || shape.last() != Some(&values.cols()) {
            return Ok(false);
        }
        let own = self.get(name, shape)?;
        let (mut row, others) = (vec![0.0; own.columns()], values.values());
        // Row by row: an embedding may be larger than what fits twice.
        Ok(others.chunks_exact(values.cols().max(1)).enumerate().all(|(index, others)| {
            own.copy_row(index, &mut row);
            row.iter().zip(others).all(|(own, other)| equal_after_rounding(*own, *other))
        }))
    }
}

fn equal_after_rounding(one: f32, other: f32) -> bool {
    let rounded =
        |wide: f32, narrow: f32| bf16::from_f32(wide).to_f32() == narrow || f16::from_f32(wide).to_f32() == narrow;
    one == other || rounded(one, other) || rounded(other, one)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_value_equals_its_rounding_to_16_bits_and_no_other() {
        let value = 0.123_456_79_f32;
        assert!(super::equal_after_rounding(value, half::bf16::from_f32(value).to_f32()));
        assert!(super::equal_after_rounding(half::f16::from_f32(value).to_f32(), value));
        assert!(!super::equal_after_rounding(value, value + 1e-6));
    }
}
