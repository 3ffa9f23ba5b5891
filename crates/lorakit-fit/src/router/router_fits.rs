//! The fits of all learned routers. A new one is a file with its [`RouterFit`] and a line here.

use super::router_fit::RouterFit;

/// The fits of all learned routers.
pub static ROUTER_FITS: &[&dyn RouterFit] = &[
    &super::centroid::CentroidFit,
    &super::phatgoose::PhatgooseFit,
    &super::task_predictor::TaskPredictorFit,
    &super::tfidf::TfidfFit,
    &super::retrieve::RetrieveFit,
    &super::scaled_uniform::ScaledUniformFit,
    &super::evidence::EvidenceFit,
    &super::poly::PolyFit,
    &crate::fitted_merge::cat::CatFit,
    &crate::fitted_merge::lorahub::LoraHubFit,
];
