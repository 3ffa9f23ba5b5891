//! The fit of a learned router.

use super::training_rows::TrainingRows;
use crate::error::Result;
use crate::fit_context::FitContext;
use lorakit_route::{Router, RouterState};
use std::any::Any;

/// Fits the state of one kind of router. All of them are in [`crate::router::ROUTER_FITS`].
///
/// A fit reads nothing but the router and the rows, and the current task only if it says so: the key of the cache covers
/// nothing else. Raise the version in the router's [`lorakit_route::MethodInfo`] whenever the fit finds another state for
/// the same rows.
pub trait RouterFit: Sync {
    /// Fits the state of `router` to the rows; `None` where it is of another kind.
    fn fit(&self, router: &dyn Router, rows: &TrainingRows) -> Option<Result<RouterState>>;

    /// Whether the fit of `router` reads [`TrainingRows::current_task`], which the key of the cache then covers too.
    fn reads_current_task(&self, _router: &dyn Router) -> bool {
        false
    }

    /// The state of `router` where there is no task to fit to, for one that needs none; `None` for any other.
    fn state_without_task(&self, _router: &dyn Router, _context: &FitContext) -> Option<Result<RouterState>> {
        None
    }
}

/// The router as one of the kind `R`, if it is.
pub(crate) fn as_kind<R: Router>(router: &dyn Router) -> Option<&R> {
    let any: &dyn Any = router;
    any.downcast_ref()
}
