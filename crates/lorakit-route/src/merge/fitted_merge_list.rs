//! The list of fitted merges, and parsing by name.

use crate::error::Result;
use crate::fixed::{cat, lorahub};
use crate::merge::fitted_merge::FittedMerge;
use crate::method_info::{self, MethodInfo};
use std::sync::Arc;

/// All fitted merges, in listing order.
pub static FITTED_MERGES: &[&MethodInfo<dyn FittedMerge>] = &[&lorahub::LORAHUB_MERGE, &cat::CAT_LEARNED];

/// Reads a fitted merge from `NAME` or `NAME:KEY=VALUE,...`.
///
/// # Errors
/// An unknown name, or settings that the method refuses.
pub fn parse_fitted_merge(typed: &str) -> Result<Arc<dyn FittedMerge>> {
    method_info::parse("fitted merge", FITTED_MERGES, typed)
}
