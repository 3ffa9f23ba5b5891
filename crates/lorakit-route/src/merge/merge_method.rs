//! The trait of merges: functions of adapters and their weights, in weight space.

use crate::error::Result;
use crate::library_stack::Expert;
use crate::merge::coefficients::Coefficients;
use crate::merge::merge_report::Merged;
use crate::method_info::MethodInfo;
use std::any::Any;
use std::fmt::{Debug, Display};

/// A method that merges several adapters into one. Its display is the name with all settings, as it can be typed.
///
/// All merges are in [`crate::merge::MERGES`].
pub trait MergeMethod: Any + Debug + Display + Send + Sync {
    /// Its name, settings and summary.
    fn info(&self) -> &'static MethodInfo<dyn MergeMethod>;

    /// Merges `experts` with their weights.
    ///
    /// The order of the experts affects only rounding; their names affect random draws. A module that an expert lacks
    /// counts as zero. The result has the first expert's configuration and a plain `alpha / r` scale.
    ///
    /// # Errors
    /// If there is nothing to merge, weights are not one finite number per expert, experts differ in the widths of a module,
    /// or the method cannot mix their ranks. Each error names the expert and the module.
    fn merge(&self, experts: &[Expert], coefficients: &Coefficients) -> Result<Merged>;

    /// Whether it adds up the A's, and the B's, and not the deltas.
    fn mixes_separately(&self) -> bool {
        false
    }

    /// A warning about merging this number of experts, if settings have no effect there.
    fn warning(&self, _experts: usize) -> Option<String> {
        None
    }

    /// The setting that only multiplies the result, with its value, where it is not at its default.
    fn changed_factor(&self) -> Option<(&'static str, f64)> {
        None
    }

    /// Whether an expert of weight zero has a part in the result: its values vote on signs and count in means, as in PEFT, or
    /// its directions in a common basis.
    fn counts_weight_zero(&self) -> bool {
        false
    }

    /// Whether the method averages agreeing experts or has its own scale, so that weights of 1 are natural.
    fn averages(&self) -> bool {
        false
    }

    /// The default weights: 1 for a merge that [`MergeMethod::averages`], else `1/n`.
    fn default_coefficients(&self, experts: usize) -> Coefficients {
        if self.averages() { Coefficients::ones(experts) } else { Coefficients::uniform(experts) }
    }
}
