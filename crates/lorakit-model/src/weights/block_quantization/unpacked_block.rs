//! What every block type comes to: small whole numbers, and a factor and a minimum for each group of them.

/// A block in groups of `SIZE` values: value `j` of group `g` is `factors[g] * quants[g][j] - minima[g]`.
pub(super) struct UnpackedBlock<const GROUPS: usize, const SIZE: usize> {
    /// The stored numbers.
    pub(super) quants: [[i8; SIZE]; GROUPS],
    /// One of each group.
    pub(super) factors: [f32; GROUPS],
    /// One of each group. A type without minima has zeros, which change no bit of a value, not even of a negative zero.
    pub(super) minima: [f32; GROUPS],
}

impl<const GROUPS: usize, const SIZE: usize> UnpackedBlock<GROUPS, SIZE> {
    /// Writes the values.
    #[inline(always)]
    pub(super) fn write(&self, values: &mut [f32]) {
        for (g, values) in values.as_chunks_mut::<SIZE>().0.iter_mut().enumerate() {
            write_group(&self.quants[g], self.factors[g], self.minima[g], values);
        }
    }
}

/// Two steps over arrays, which the compiler turns into vectors; of one loop it makes none.
#[inline(always)]
fn write_group<const SIZE: usize>(quants: &[i8; SIZE], factor: f32, minimum: f32, values: &mut [f32; SIZE]) {
    let wide = mapped(quants, f32::from);
    *values = mapped(&wide, |q| factor * q - minimum);
}

/// `values.map(map)` that is part of the loop around it; the standard one may stay a function of its own, which is compiled
/// for no vectors in particular.
#[inline(always)]
pub(super) fn mapped<T: Copy, U: Copy + Default, const N: usize>(values: &[T; N], map: impl Fn(T) -> U) -> [U; N] {
    let mut mapped = [U::default(); N];
    for (to, value) in mapped.iter_mut().zip(values) {
        *to = map(*value);
    }
    mapped
}

/// The `LENGTH` bytes from `START` on of a block, which has them.
#[inline(always)]
pub(super) fn field<const START: usize, const LENGTH: usize>(block: &[u8]) -> &[u8; LENGTH] {
    block[START..].first_chunk().unwrap_or(&[0; LENGTH])
}

/// An f16, little-endian, as f32. Plain operations without a branch, because `half` calls a function that is not compiled
/// for the vectors of the loop around it.
#[inline(always)]
pub(super) fn scale(bytes: &[u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(*bytes));
    let magnitude = (bits & 0x7fff) << 13;
    // The exponent moves from a bias of 15 to one of 127; that of infinities and NaNs is the largest of both types.
    let normal = magnitude + ((127 - 15) << 23);
    let special = magnitude + ((255 - 31) << 23);
    // Numbers below the smallest normal f16 have no leading one: with the exponent of 2^-14 they have one too much.
    let smallest = (127 - 14) << 23;
    let subnormal = (f32::from_bits(magnitude + smallest) - f32::from_bits(smallest)).to_bits();
    let value = match bits & 0x7c00 {
        0 => subnormal,
        0x7c00 => special,
        _ => normal,
    };
    f32::from_bits(value | (bits & 0x8000) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    #[test]
    fn every_f16_is_widened_as_by_half() {
        for bits in 0..=u16::MAX {
            let (ours, expected) = (scale(&bits.to_le_bytes()), f16::from_bits(bits).to_f32());
            assert!(ours.to_bits() == expected.to_bits() || ours.is_nan() && expected.is_nan(), "{bits:#06x}");
        }
    }
}
