//! What a merge is: a function of adapters and their weights, in weight space.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::merge_report::Merged;
use crate::method_info::MethodInfo;
use std::any::Any;
use std::fmt::{Debug, Display};

/// A way to make one adapter of several. Its display is the name with all settings, as it can be typed.
///
/// All merges are in [`crate::merge::MERGES`].
pub trait MergeMethod: Any + Debug + Display + Send + Sync {
    /// Its name, settings and summary.
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod>;

    /// Merges `experts`, each by its weight.
    ///
    /// The order of the experts matters only to rounding; their names do to what is drawn at random. A module that an
    /// expert lacks counts as zero. The result has the first expert's configuration and a plain `alpha / r` scale.
    ///
    /// # Errors
    /// If there is nothing to merge, weights are not one finite number per expert, experts were made for different bases,
    /// or the method cannot mix their ranks. Each error names the expert and the module.
    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged>;

    /// Whether experts that agree give their mean, or the method has a scale of its own, so that a weight of one each is
    /// the natural one.
    fn averages(&self) -> bool {
        false
    }

    /// The weights if none are given: one each for a merge that [`MergeMethod::averages`], else `1/n`.
    fn default_coefficients(&self, experts: usize) -> Coefficients {
        if self.averages() { Coefficients::ones(experts) } else { Coefficients::uniform(experts) }
    }
}
