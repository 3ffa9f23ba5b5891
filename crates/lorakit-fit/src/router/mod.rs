//! Learned routers: the rows that each is fitted to, the fit, and the cache of fitted state in the library.

mod build_router;
mod centroid;
mod evidence;
mod lowest_loss;
mod phatgoose;
mod poly;
mod prompt_routing;
mod retrieve;
mod router_cache;
pub(crate) mod router_fit;
mod router_fits;
mod scaled_uniform;
mod task_finder;
mod task_predictor;
mod tfidf;
pub(crate) mod training_rows;

pub use build_router::{RoutedPatches, build_router, depends_on_task, warn_of_router_seeds};
pub use router_fit::RouterFit;
pub use router_fits::ROUTER_FITS;
pub use training_rows::{RowsIdentity, TaskIdentity, TrainingRow, TrainingRows};
