//! What happens in a run, as whoever watches is told.

use crate::pass::StepOutput;
use crate::run::expert_progress::ExpertProgress;
use crate::run::memory_estimate::MemoryEstimate;

/// What happens in a run, for whoever watches.
pub enum TrainEvent<'a> {
    /// The work is known.
    Planned {
        /// Experts to be trained, pass by pass.
        passes: &'a [Vec<String>],
        /// Experts that were there already.
        kept: &'a [String],
        /// What the largest pass needs.
        estimate: MemoryEstimate,
    },
    /// A pass starts, or goes on after `done` steps.
    Pass {
        /// Its number among those planned, from zero.
        index: usize,
        /// Steps done before.
        done: usize,
        /// All its steps.
        steps: usize,
    },
    /// A step was taken.
    Step {
        /// What it did.
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
    /// An expert was given up.
    Failed {
        /// Its name.
        expert: &'a str,
        /// Why.
        why: &'a str,
    },
}

impl TrainEvent<'_> {
    /// The same, a pass's number being that among those planned now.
    pub(crate) fn numbered(self, number: usize) -> Self {
        match self {
            Self::Pass { done, steps, .. } => Self::Pass { index: number, done, steps },
            other => other,
        }
    }
}
