//! Which rows a router is fitted to.

/// The rows that a router is fitted to unless the user gives others; at most `rows` of each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainingData {
    /// Rows of the tasks that each expert was trained on; each row belongs to its expert.
    ExpertTasks {
        /// Rows of each task.
        rows: usize,
    },
    /// Rows as under [`TrainingData::ExpertTasks`], and besides some as under [`TrainingData::ExpertValidation`], whose
    /// answers choose settings: on rows that an expert was trained on, trusting experts looks better than it is.
    CalibratedExpertTasks {
        /// Rows of each task.
        rows: usize,
        /// Validation rows of each task.
        calibration_rows: usize,
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
            Self::ExpertTasks { rows }
            | Self::CalibratedExpertTasks { rows, .. }
            | Self::ExpertValidation { rows }
            | Self::TargetTask { rows } => rows,
        }
    }

    /// The maximum number of validation rows of each task beside the rows, if there are such.
    pub fn calibration_rows(self) -> Option<usize> {
        match self {
            Self::CalibratedExpertTasks { calibration_rows, .. } => Some(calibration_rows),
            Self::ExpertTasks { .. } | Self::ExpertValidation { .. } | Self::TargetTask { .. } => None,
        }
    }

    /// Whether answers of validation rows decide something.
    pub fn reads_validation(self) -> bool {
        matches!(self, Self::CalibratedExpertTasks { .. } | Self::ExpertValidation { .. })
    }

    /// Whether the rows are of the experts' tasks, and not of the current one.
    pub fn is_of_experts(self) -> bool {
        !matches!(self, Self::TargetTask { .. })
    }
}
