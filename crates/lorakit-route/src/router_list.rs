//! The routers by name, as they are typed.

use crate::error::Result;
use crate::fixed::{cat, lorahub, no_expert, oracle, poly, single, uniform};
use crate::method_info::{self, MethodInfo};
use crate::prompt::{evidence, task_predictor};
use crate::router::Router;
use crate::token::{arrow, centroid, phatgoose};
use std::sync::Arc;

/// All routers, in the order in which they are listed.
pub static ROUTERS: &[&MethodInfo<dyn Router>] = &[
    &no_expert::BASE,
    &oracle::ORACLE,
    &uniform::UNIFORM,
    &arrow::ARROW,
    &centroid::CM,
    &phatgoose::PHATGOOSE,
    &task_predictor::TP,
    &evidence::EVIDENCE,
    &poly::POLY,
    &poly::MHR,
    &lorahub::LORAHUB,
    &cat::CAT,
    &single::EXPERT,
];

/// Reads a router from `NAME` or `NAME:KEY=VALUE,...`.
///
/// # Errors
/// An unknown name, or settings that the router refuses.
pub fn parse_router(typed: &str) -> Result<Arc<dyn Router>> {
    method_info::parse("router", ROUTERS, typed)
}
