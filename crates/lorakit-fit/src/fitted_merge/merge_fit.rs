//! The fit of a merge whose weights are fitted to rows.

use super::fitted_weights::FittedWeights;
use super::weight_fit_context::WeightFitContext;
use crate::error::{FitError, Result};
use lorakit_route::FittedMerge;
use lorakit_task::Example;

/// Fits the weights of one kind of merge. All of them are in [`crate::fitted_merge::MERGE_FITS`].
pub trait MergeFit: Sync {
    /// Fits the weights of `merge` to the rows; `None` where it is of another kind.
    fn fit_merge(
        &self,
        merge: &dyn FittedMerge,
        context: WeightFitContext,
        rows: &[Example],
    ) -> Option<Result<FittedWeights>>;
}

/// Refuses rows and experts that weights cannot be fitted to.
pub(super) fn ensure_fittable(merge: &dyn FittedMerge, context: WeightFitContext, rows: &[Example]) -> Result<()> {
    if rows.is_empty() {
        return Err(FitError::NoRows);
    }
    Ok(merge.check(context.experts)?)
}
