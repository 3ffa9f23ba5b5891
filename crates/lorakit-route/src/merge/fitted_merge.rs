//! The trait of fitted merges: merges whose weights are fitted to rows of a task.

use crate::error::Result;
use crate::library_stack::LibraryStack;
use crate::merge::coefficients::Coefficients;
use crate::merge::merge_method::MergeMethod;
use crate::method_info::MethodInfo;
use lorakit_adapter::Matrix;
use std::any::Any;
use std::fmt::{Debug, Display};
use std::sync::Arc;

/// A merge whose expert weights are fitted to rows of a task. Its display is the name with all settings, as it can be
/// typed.
///
/// All of them are in [`crate::FITTED_MERGES`].
pub trait FittedMerge: Any + Debug + Display + Send + Sync {
    /// Its name, settings and summary.
    fn info(&self) -> &'static MethodInfo<dyn FittedMerge>;

    /// The maximum number of rows per task that it is fitted to.
    fn rows(&self) -> usize;

    /// Refuses experts that the method cannot mix.
    ///
    /// # Errors
    /// As published, LoraHub requires experts with the same modules, ranks and scales.
    fn check(&self, _: &LibraryStack) -> Result<()> {
        Ok(())
    }

    /// The merge and its coefficients (in the order of `experts`) that turn fitted weights, `[groups, experts]`, into
    /// one adapter.
    ///
    /// # Errors
    /// If the weights belong to another library.
    fn merge(&self, experts: &LibraryStack, weights: &Matrix) -> Result<(Arc<dyn MergeMethod>, Coefficients)>;
}
