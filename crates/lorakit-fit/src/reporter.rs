//! How a caller follows long work and stops it. This crate prints nothing and handles no signals.

use lorakit_train::TrainEvent;
use std::ops::Deref;
use std::sync::atomic::AtomicBool;

/// Receives what a user may want to know while something is fitted.
pub trait Reporter {
    /// One line of progress, without a line break.
    fn status(&self, text: &str);

    /// Something that the user should know beside the result.
    fn warn(&self, text: &str);

    /// The hooks of a training run that starts now. They are dropped when it ends.
    fn training(&self) -> TrainingHooks<'_>;
}

/// A caller's hooks into a training run.
pub struct TrainingHooks<'a> {
    /// Set from outside to stop the run at the end of the current step.
    pub stop: Box<dyn Deref<Target = AtomicBool> + 'a>,
    /// Called with everything that happens.
    pub on_event: Box<dyn FnMut(TrainEvent<'_>) + 'a>,
}

/// Reports nothing and never stops a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Reporter for Silent {
    fn status(&self, _: &str) {}

    fn warn(&self, _: &str) {}

    fn training(&self) -> TrainingHooks<'_> {
        TrainingHooks { stop: Box::new(Box::new(AtomicBool::new(false))), on_event: Box::new(|_| ()) }
    }
}
