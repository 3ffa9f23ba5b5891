//! The events of a training run, for a progress callback.

use crate::pass::StepOutput;
use crate::run::device_memory::MemoryEstimate;
use crate::run::expert_progress::ExpertProgress;

/// An event of a training run.
pub enum TrainEvent<'a> {
    /// The run is planned.
    Planned {
        /// The experts to train, pass by pass.
        passes: &'a [Vec<String>],
        /// The experts that were finished before.
        finished: &'a [String],
        /// Memory that the largest pass needs.
        estimate: MemoryEstimate,
    },
    /// Something that the user should know.
    Warning {
        /// One sentence.
        text: &'a str,
    },
    /// A pass starts, or continues after `done` steps.
    Pass {
        /// Its index among the planned passes.
        index: usize,
        /// Steps done before.
        done: usize,
        /// Its total steps.
        steps: usize,
    },
    /// A step is done.
    Step {
        /// Its outcome.
        step: &'a StepOutput,
        /// The experts of the pass.
        experts: &'a [String],
    },
    /// An expert is in the library.
    Finished {
        /// Its name.
        expert: &'a str,
        /// Its losses.
        progress: &'a ExpertProgress,
    },
    /// An expert's training failed.
    Failed {
        /// Its name.
        expert: &'a str,
        /// The reason.
        reason: &'a str,
    },
}

/// A progress callback.
pub(crate) type OnEvent<'e> = dyn FnMut(TrainEvent<'_>) + 'e;

impl TrainEvent<'_> {
    /// The same event with a pass's index replaced.
    pub(crate) fn with_pass_index(self, index: usize) -> Self {
        match self {
            Self::Pass { done, steps, .. } => Self::Pass { index, done, steps },
            other => other,
        }
    }
}
