//! Adding an adapter's delta to a weight of a base.

use crate::error::{Result, RouteError};
use lorakit_adapter::LowRank;
use rayon::prelude::*;

/// How a base stores the weight of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orientation {
    /// `[out, in]`, like torch's `Linear`.
    OutIn,
    /// `[in, out]`, like torch's `Embedding`, whose input is a token.
    InOut,
}

/// Adds `s B A` to the row-major `weight` of a module: `W += s B A`, or its transpose for [`Orientation::InOut`]. Each
/// value is summed in f64 and rounded once, to f32; rounding to the weight's dtype is left to the caller.
///
/// # Errors
/// If `weight` and the delta differ in size, or a sum is not finite in f32; `module` is named.
pub fn add_to_weight(module: &str, update: &LowRank, weight: &mut [f32], orientation: Orientation) -> Result<()> {
    let (output, input) = (update.output(), update.input());
    if weight.len() != output * input {
        return Err(RouteError::BaseWeight { module: module.to_owned(), found: weight.len(), output, input });
    }
    // A row of the delta is a combination of the rows of one factor, by a row of the other.
    let (mixed, by) = match orientation {
        Orientation::OutIn => (update.a(), update.b()),
        Orientation::InOut => (&update.b().transposed(), &update.a().transposed()),
    };
    let (mixed, by) = (mixed.values(), by.values());
    let (width, rank, scale) = (mixed.len() / update.rank(), update.rank(), update.scale());
    weight.par_chunks_exact_mut(width).zip(by.par_chunks_exact(rank)).for_each_init(
        || vec![0f64; width],
        |sums, (row, by)| {
            sums.iter_mut().zip(&*row).for_each(|(sum, value)| *sum = f64::from(*value));
            for (by, mixed) in by.iter().zip(mixed.chunks_exact(width)) {
                let by = scale * f64::from(*by);
                sums.iter_mut().zip(mixed).for_each(|(sum, value)| *sum += by * f64::from(*value));
            }
            row.iter_mut().zip(&*sums).for_each(|(value, sum)| *value = *sum as f32);
        },
    );
    match weight.iter().all(|value| value.is_finite()) {
        true => Ok(()),
        false => Err(RouteError::Arithmetic {
            module: module.to_owned(),
            problem: "the weight is not finite after the merge",
        }),
    }
}
