//! Where tapes leave the gradients of the adapters that they pass.

use candle_core::TensorId;
use lorakit_lora::{GradientSink, SparseGradients};

/// The sinks of one batch: for each site with adapters, the ids of its A and B variables and the sink of their gradients.
#[derive(Default)]
pub struct GradientSinks(Vec<([TensorId; 2], GradientSink)>);

impl GradientSinks {
    /// Adds a site's sink.
    pub fn push(&mut self, variables: [TensorId; 2], sink: GradientSink) {
        self.0.push((variables, sink));
    }

    /// Takes all gradients out, each with the id of its variable.
    pub fn take(&self) -> impl Iterator<Item = (TensorId, SparseGradients)> {
        self.0.iter().flat_map(|(variables, sink)| variables.iter().copied().zip(sink.take()))
    }
}
