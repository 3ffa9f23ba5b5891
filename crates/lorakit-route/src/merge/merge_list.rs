//! The list of merges, and parsing by name.

use crate::error::Result;
use crate::merge::merge_method::MergeMethod;
use crate::method_info::{self, MethodInfo};
use std::sync::Arc;

/// All merges, in listing order. If a merge has conventions, the settings are those of the
/// first; others may have other defaults.
pub static MERGES: &[&MethodInfo<dyn MergeMethod>] = &[
    &super::concatenation::CAT,
    &super::svd::SVD,
    &super::task_vectors::LINEAR,
    &super::task_vectors::TASK_ARITHMETIC,
    &super::task_vectors::TIES,
    &super::task_vectors::TIES_SVD,
    &super::task_vectors::DARE_LINEAR,
    &super::task_vectors::DARE_LINEAR_SVD,
    &super::task_vectors::DARE_TIES,
    &super::task_vectors::DARE_TIES_SVD,
    &super::task_vectors::MAGNITUDE_PRUNE,
    &super::task_vectors::MAGNITUDE_PRUNE_SVD,
    &super::task_vectors::BREADCRUMBS,
    &super::task_vectors::BREADCRUMBS_TIES,
    &super::core_space::CORE_SPACE,
    &super::knots::KNOTS,
    &super::wudi::WUDI,
    &super::tsv::TSV,
    &super::iso_c::ISO_C,
    &super::iso_cts::ISO_CTS,
    &super::ctm::CTM,
    &super::robust::ROBUST,
    &super::lego::LEGO,
];

/// Reads a merge from `NAME` or `NAME:KEY=VALUE,...`.
///
/// # Errors
/// An unknown name, or settings that the merge refuses.
pub fn parse_merge(typed: &str) -> Result<Arc<dyn MergeMethod>> {
    method_info::parse("merge", MERGES, typed)
}
