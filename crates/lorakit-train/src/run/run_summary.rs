//! The outcome of a run.

use crate::run::device_memory::MemoryEstimate;
use std::path::PathBuf;

/// The outcome of a run.
#[derive(Clone, Debug, Default)]
pub struct RunSummary {
    /// Experts trained now.
    pub trained: Vec<String>,
    /// Experts that were finished before.
    pub finished: Vec<String>,
    /// Experts that failed, with the reason.
    pub failed: Vec<(String, String)>,
    /// Whether the run was stopped before its end.
    pub stopped: bool,
    /// Experts that other parts of the run train, and that were not finished when this one ended.
    pub missing_elsewhere: Vec<String>,
    /// Experts that other parts of the run train.
    pub elsewhere: Vec<String>,
    /// The run's folder; empty if there was nothing to train.
    pub folder: PathBuf,
    /// The memory of its largest pass, as estimated; zero if there was nothing to train.
    pub estimate: MemoryEstimate,
}
