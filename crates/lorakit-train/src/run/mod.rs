//! Training runs with files: passes, checkpoints, logs, and results kept in a library.

pub mod event;
pub mod expert_progress;
pub(crate) mod fingerprint;
pub(crate) mod log;
pub mod memory_estimate;
pub(crate) mod pass_checkpoint;
pub mod routing_store;
pub mod trainer;
pub mod training_target;
