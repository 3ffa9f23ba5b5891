//! Training into a library: which experts on which rows, the run, and its report.

pub(crate) mod train_context;
pub(crate) mod training_plan;
pub(crate) mod training_run;

pub use train_context::TrainContext;
pub use training_plan::{TrainingPlan, each_job, jobs, joint, of_clusters, private, random_examples};
pub use training_run::{ReadyPlan, TrainedExpert, TrainedKind, TrainingReport};
