//! Clustering that needs a base or training: the common initial A of experts, task embeddings, and two-stage MBC.

mod expert_clusters;
mod library_experts;
mod task_embedding;
mod two_stage_mbc;

pub use expert_clusters::{ClusterCount, ClusteredExperts, SilhouetteCurve, cluster_deltas, cluster_experts};
pub use library_experts::{open_experts, records};
pub use task_embedding::{ROWS, embed_tasks, mean};
pub use two_stage_mbc::{
    ClusteredStage, TwoStageMbc, TwoStagePlan, ensure_enough_tasks, plan_two_stage_mbc, two_stage_mbc,
};
