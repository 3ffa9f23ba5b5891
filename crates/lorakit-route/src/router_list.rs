//! The routers by name, as they are typed.

use crate::error::Result;
use crate::method_info::{self, MethodInfo};
use crate::router::Router;
use std::sync::Arc;

/// All routers, in the order in which they are listed.
pub static ROUTERS: &[&MethodInfo<dyn Router>] = &[
    &crate::fixed::no_expert::BASE,
    &crate::fixed::oracle::ORACLE,
    &crate::fixed::uniform::UNIFORM,
    &crate::fixed::scaled_uniform::SCALED_UNIFORM,
    &crate::token::random::RANDOM,
    &crate::token::arrow_norm::ARROW_NORM,
    &crate::token::arrow::ARROW,
    &crate::token::spectr::SPECTR,
    &crate::token::lag::LAG,
    &crate::token::centroid::CM,
    &crate::token::phatgoose::PHATGOOSE,
    &crate::prompt::task_predictor::TP,
    &crate::prompt::tfidf::TFIDF,
    &crate::prompt::logo::LOGO,
    &crate::prompt::retrieve::RETRIEVE,
    &crate::prompt::evidence::EVIDENCE,
    &crate::fixed::poly::POLY,
    &crate::fixed::poly::MHR,
    &crate::fixed::lorahub::LORAHUB,
    &crate::fixed::cat::CAT,
    &crate::fixed::single::EXPERT,
];

/// Reads a router from `NAME` or `NAME:KEY=VALUE,...`.
///
/// # Errors
/// An unknown name, or settings that the router refuses.
pub fn parse_router(typed: &str) -> Result<Arc<dyn Router>> {
    method_info::parse("router", ROUTERS, typed)
}
