//! What a fitted merge is: a merge whose weights are fitted to rows of a task.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::merge::coefficients::Coefficients;
use crate::merge::merge_method::MergeMethod;
use crate::method_info::MethodInfo;
use lorakit_adapter::Matrix;
use std::any::Any;
use std::fmt::{Debug, Display};
use std::sync::Arc;

/// A way to weigh experts by what rows of a task say. Its display is the name with all settings, as it can be typed.
///
/// All of them are in [`crate::FITTED_MERGES`].
pub trait FittedMerge: Any + Debug + Display + Send + Sync {
    /// Its name, settings and summary.
    fn info(&self) -> &'static MethodInfo<dyn FittedMerge>;

    /// How many rows of each task it is fitted to, at most.
    fn rows(&self) -> usize;

    /// Refuses experts that cannot be weighed so.
    ///
    /// # Errors
    /// As published, LoraHub takes experts of the same modules, ranks and scales.
    fn check(&self, _: &LibraryStack) -> Result<()> {
        Ok(())
    }

    /// The merge that makes one adapter of fitted weights, `[groups, experts]`, with its coefficients in the order of
    /// `experts`.
    ///
    /// # Errors
    /// If the weights are of another library.
    fn merge(&self, experts: &LibraryStack, weights: &Matrix) -> Result<(Arc<dyn MergeMethod>, Coefficients)>;
}
