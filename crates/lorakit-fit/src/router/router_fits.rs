//! The fits of all learned routers. A new one is a file with its [`RouterFit`] and a line here.

use super::centroid::CentroidFit;
use super::evidence::EvidenceFit;
use super::phatgoose::PhatgooseFit;
use super::poly::PolyFit;
use super::router_fit::RouterFit;
use super::task_predictor::TaskPredictorFit;
use crate::fitted_merge::cat::CatFit;
use crate::fitted_merge::lorahub::LoraHubFit;

/// The fits of all learned routers.
pub static ROUTER_FITS: &[&dyn RouterFit] =
    &[&CentroidFit, &PhatgooseFit, &TaskPredictorFit, &EvidenceFit, &PolyFit, &LoraHubFit, &CatFit];
