//! Training runs on disk: passes, checkpoints, logs, and results stored in a library.

pub(crate) mod cgroup_memory;
pub mod device_memory;
pub mod expert_progress;
pub(crate) mod job_fingerprint;
pub(crate) mod loss_history;
pub mod memory_estimate;
pub(crate) mod pass_checkpoint;
pub(crate) mod pass_run;
pub mod routing_store;
pub(crate) mod run_folder;
pub(crate) mod run_log;
pub(crate) mod run_manifest;
pub mod run_part;
pub(crate) mod run_passes;
pub mod run_plan;
pub mod run_summary;
pub(crate) mod tape_memory;
pub(crate) mod tensorboard_log;
pub mod train_event;
pub mod trainer;
pub mod training_target;
