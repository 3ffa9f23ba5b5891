//! Training into a library: which experts on which rows, the run, and its report.

pub(crate) mod context;
pub(crate) mod plan;
pub(crate) mod run;

pub use context::TrainContext;
pub use plan::{TrainingPlan, each_job, jobs, joint, of_clusters, private, random_examples};
pub use run::{TrainedExpert, TrainedKind, TrainingReport};
