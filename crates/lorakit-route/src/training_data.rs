//! Which rows a router is fitted to.

/// The rows that a router is fitted to unless the user gives others; at most `rows` of each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingData {
    /// Rows of the tasks that each expert was trained on; each row belongs to its expert.
    ExpertTasks {
        /// Rows of each task.
        rows: usize,
    },
    /// Validation rows of those tasks, which no expert was trained on.
    ExpertValidation {
        /// Rows of each task.
        rows: usize,
    },
    /// Rows of the current task: the state serves only that task.
    TargetTask {
        /// Rows of the task.
        rows: usize,
    },
}

impl TrainingData {
    /// The maximum number of rows of each task.
    pub fn rows(self) -> usize {
        match self {
            Self::ExpertTasks { rows } | Self::ExpertValidation { rows } | Self::TargetTask { rows } => rows,
        }
    }
}
