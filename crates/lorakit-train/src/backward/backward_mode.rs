//! The ways to differentiate a layer, and what is kept of its activations.

use lorakit_model::Base;

/// How a layer is differentiated; this decides what is kept of its forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackwardMode {
    /// On a tape: the inputs of each step.
    Tape,
    /// In candle's graph: the inputs and outputs of each op, and all partial sums.
    Graph,
    /// In candle's graph, the base's own weights included.
    Weights,
}

impl BackwardMode {
    /// How adapters over a frozen base are differentiated: tapes run on a CPU only.
    pub fn of_adapters(base: &Base) -> Self {
        if base.device().is_cpu() { Self::Tape } else { Self::Graph }
    }
}

/// What happens to the activations inside a layer until its backward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// They are kept.
    Kept,
    /// They are dropped and recomputed (gradient checkpointing).
    Recomputed,
}

impl Activations {
    /// The choice that the setting `gradient_checkpointing` makes.
    pub fn of_checkpointing(gradient_checkpointing: bool) -> Self {
        if gradient_checkpointing { Self::Recomputed } else { Self::Kept }
    }
}
