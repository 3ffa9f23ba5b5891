//! The best update of low rank for a change of a weight that has none.

use crate::error::{Result, RouteError};
use crate::merge::low_rank_product::truncate;
use crate::merge::merge_report::ModuleReport;
use crate::merge::module::Module;
use crate::merge::rank::Rank;
use faer::MatRef;
use lorakit_adapter::LowRank;

/// Truncates the `change` of the weight of `module`, `[out, in]` row by row, to a rank, by its singular value decomposition;
/// reports how much of it the update retains.
///
/// # Errors
/// If the change does not fill its shape or is not finite, or the decomposition does not converge.
pub fn compress(
    module: &str,
    change: &[f64],
    [output, input]: [usize; 2],
    rank: usize,
) -> Result<(LowRank, ModuleReport)> {
    if change.len() != output * input || output * input == 0 {
        return Err(RouteError::BaseWeight { module: module.to_owned(), found: change.len(), output, input });
    }
    let whole = Module { path: module, input, output, parts: Vec::new(), total_weight: 0.0 };
    if !change.iter().all(|value| value.is_finite()) {
        return Err(whole.arithmetic("the change of the weight is not finite"));
    }
    let merged = truncate(&whole, MatRef::from_row_major_slice(change, output, input), Rank::Of(rank))?;
    let report = ModuleReport {
        module: module.to_owned(),
        rank: merged.update.rank(),
        retained: merged.retained.share,
        error: merged.retained.error,
    };
    Ok((merged.update, report))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_largest_direction_of_a_change_is_kept() {
        // Singular values 3 and 1.
        let (update, report) = compress("m", &[0.0, 3.0, 0.0, 1.0, 0.0, 0.0], [2, 3], 1).unwrap();
        let delta = update.delta();
        assert!(
            delta.iter().zip([0.0, 3.0, 0.0, 0.0, 0.0, 0.0]).all(|(found, expected)| (found - expected).abs() < 1e-6)
        );
        assert!((report.retained - 0.9).abs() < 1e-12 && (report.error - 0.1f64.sqrt()).abs() < 1e-12);
        assert!(compress("m", &[f64::NAN], [1, 1], 1).is_err() && compress("m", &[], [1, 1], 1).is_err());
    }
}
