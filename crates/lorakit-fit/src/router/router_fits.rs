//! The fits of all learned routers. A new one is a file with its [`RouterFit`] and a line here.

use super::router_fit::RouterFit;
use lorakit_route::Router;

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

/// Whether the fit of `router` reads the current task.
pub(super) fn reads_current_task(router: &dyn Router) -> bool {
    ROUTER_FITS.iter().any(|fit| fit.reads_current_task(router))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lorakit_route::parse_router;

    /// The current task in the key of any other router would fit it again for every task.
    #[test]
    fn only_routings_of_skills_read_the_current_task() {
        for (name, reads) in [("poly", true), ("mhr", true), ("cat", false), ("lorahub", false), ("arrow", false)] {
            assert_eq!(reads_current_task(&*parse_router(name).unwrap()), reads, "{name}");
        }
    }
}
