//! The merges by name, as they are typed.

use crate::error::Result;
use crate::merge::merge_method::MergeMethod;
use crate::merge::{concatenation, core_space, knots, svd, task_vectors, wudi};
use crate::method_info::{self, MethodInfo};
use std::sync::Arc;

/// All merges, in the order in which they are listed. If a merge has conventions, the settings are those of the
/// first; others may have other defaults.
pub static MERGES: &[&MethodInfo<dyn MergeMethod>] = &[
    &concatenation::CAT,
    &svd::SVD,
    &task_vectors::LINEAR,
    &task_vectors::TASK_ARITHMETIC,
    &task_vectors::TIES,
    &task_vectors::TIES_SVD,
    &task_vectors::DARE_LINEAR,
    &task_vectors::DARE_LINEAR_SVD,
    &task_vectors::DARE_TIES,
    &task_vectors::DARE_TIES_SVD,
    &task_vectors::MAGNITUDE_PRUNE,
    &task_vectors::MAGNITUDE_PRUNE_SVD,
    &task_vectors::BREADCRUMBS,
    &task_vectors::BREADCRUMBS_TIES,
    &core_space::CORE_SPACE,
    &knots::KNOTS,
    &wudi::WUDI,
];

/// Reads a merge from `NAME` or `NAME:KEY=VALUE,...`.
///
/// # Errors
/// An unknown name, or settings that the merge refuses.
pub fn parse_merge(typed: &str) -> Result<Arc<dyn MergeMethod>> {
    method_info::parse("merge", MERGES, typed)
}
