//! The constants of AdamW and what one step of it does to an expert's rows.

pub(crate) const BETA1: f64 = 0.9;
pub(crate) const BETA2: f64 = 0.999;
pub(crate) const EPSILON: f64 = 1e-8;

/// One expert's update of its rows.
#[derive(Clone, Copy, Debug)]
pub struct AdamWUpdate {
    /// The learning rate at this step.
    pub lr: f64,
    /// The factor that clips the gradient.
    pub clip: f64,
    /// The number of this update, from one.
    pub step: usize,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}
