//! Learned routers: the rows that each is fitted to, the fit, and the cache of fitted state in the library.

mod build;
mod cache;
mod centroid;
mod evidence;
mod fitted_merge;
mod phatgoose;
mod poly;
mod prompt_routing;
mod task_predictor;
mod training_rows;

pub use build::{RoutedPatches, build_router, depends_on_task};
pub use training_rows::{TrainingRow, TrainingRows};
