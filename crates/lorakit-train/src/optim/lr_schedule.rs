//! How the learning rate goes up and down, as in transformers.

use serde::{Deserialize, Serialize};

/// The form of the schedule after its warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrSchedulerType {
    /// Linearly to zero.
    Linear,
    /// Half a cosine to zero.
    Cosine,
    /// Not at all.
    Constant,
}

/// A schedule over a known number of steps.
#[derive(Clone, Copy, Debug)]
pub struct LrSchedule {
    scheduler: LrSchedulerType,
    warmup: usize,
    steps: usize,
}

impl LrSchedule {
    /// A warm-up over `ceil(warmup_ratio * steps)` steps, then `scheduler`.
    pub fn new(scheduler: LrSchedulerType, warmup_ratio: f64, steps: usize) -> Self {
        Self { scheduler, warmup: (warmup_ratio * steps as f64).ceil() as usize, steps }
    }

    /// All steps.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// The share of the learning rate at `step`, from zero: `t / w` while warming up, then linearly `(T - t) / (T - w)`
    /// or by cosine `(1 + cos(π (t - w) / (T - w))) / 2`. The first step of a warm-up has rate zero, as in transformers.
    pub fn factor(&self, step: usize) -> f64 {
        if step < self.warmup {
            return step as f64 / self.warmup as f64;
        }
        let left = (self.steps - self.warmup).max(1) as f64;
        let done = (step - self.warmup) as f64 / left;
        match self.scheduler {
            LrSchedulerType::Linear => (1.0 - done).max(0.0),
            LrSchedulerType::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos()),
            LrSchedulerType::Constant => 1.0,
        }
    }
}
