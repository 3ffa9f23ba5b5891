//! Gradients of a weighted sum of token losses, one layer at a time.
//!
//! Adapters on a CPU are differentiated on tapes, which pass gradients from layer to layer and leave those of the adapters
//! in [`GradientSinks`]. Everything else uses candle's graph: hidden states enter each layer as a new variable, so that
//! each layer's graph ends at its input. Either way a layer's activations are freed as soon as its gradients are computed.

use crate::backward::backward_mode::Activations;
use crate::backward::gradient_sinks::GradientSinks;
use crate::backward::gradients::Gradients;
use crate::error::Result;
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, Var};
use lorakit_lora::Patches;
use lorakit_lora::kernels::vjp::with_vjp;
use lorakit_model::layer::lm_head::HeadPatch;
use lorakit_model::layer::tape::Tape;
use lorakit_model::{Base, ForwardPlan, TokenBatch};

/// A batch to differentiate.
pub struct LossBatch<'a> {
    /// The sequences with their target tokens.
    pub packed: &'a TokenBatch,
    /// The patches of the base's sites. They must act on each token alone: of the last layer, only the tokens that predict
    /// targets pass through the projections after the attention.
    pub patches: &'a Patches,
    /// The weight of each target's loss in the sum.
    pub weights: &'a [f32],
    /// The sinks of all gradients, if the patches support tapes; None if candle's graph leads to the variables.
    pub sinks: Option<&'a GradientSinks>,
}

/// Differentiates batches layer by layer.
#[derive(Clone, Copy)]
pub struct LayerwiseBackward<'a> {
    /// The base.
    pub base: &'a Base,
    /// What happens to the activations inside a layer.
    pub activations: Activations,
    /// The variables whose gradients are computed where no sinks collect them.
    pub variables: &'a [Var],
}

/// What is kept of a layer until its backward.
enum TapedLayer {
    /// Its output, with the tape.
    Kept(Tensor, Tape),
    /// Its input, from which it is recomputed.
    Input(Tensor),
}

impl LayerwiseBackward<'_> {
    /// Adds the gradients of `sum_t weights[t] * nll[t]` to `gradients`, and returns the negative log-likelihood of every
    /// target.
    pub fn accumulate(&self, batch: &LossBatch, gradients: &mut Gradients) -> Result<Vec<f32>> {
        let plan = self.base.plan_for_targets(batch.packed)?;
        let Some(sinks) = batch.sinks else { return self.in_graphs(batch, &plan, gradients) };
        let losses = self.on_tapes(batch, &plan)?;
        gradients.add_sparse(sinks.take());
        Ok(losses)
    }

    /// The losses of the targets that `h`, `[targets, hidden]`, predicts, and the gradients of their weighted sum.
    fn head_gradients(&self, batch: &LossBatch, h: &Var) -> Result<(Vec<f32>, GradStore)> {
        let normed = self.base.final_norm(h.as_tensor())?;
        let targets = batch.packed.target_sequences();
        let head_patch = HeadPatch::of(batch.patches, &targets);
        let nll = self.base.lm_head().nll(&normed, &batch.packed.target_ids(), head_patch)?;
        let weights = Tensor::from_slice(batch.weights, batch.weights.len(), h.device())?;
        let store = (&nll * weights)?.sum_all()?.backward()?;
        Ok((nll.detach().to_vec1()?, store))
    }

    /// By tapes, over a frozen base on a CPU; the patches leave the gradients in their sinks.
    fn on_tapes(&self, batch: &LossBatch, plan: &ForwardPlan) -> Result<Vec<f32>> {
        let base = self.base;
        // Nothing below the first patched layer needs a gradient.
        let patched = base.sites().iter().enumerate().filter(|(site, _)| batch.patches.at(*site).is_some());
        let first = patched.filter_map(|(_, site)| site.layer).min().unwrap_or(base.layers());
        let layer = |i: usize, h: &Tensor| base.taped(plan, batch.patches).layer(i, h, i > first);
        let mut h = base.embed(batch.packed.ids())?;
        let mut layers = Vec::with_capacity(base.layers());
        for i in 0..base.layers() {
            let (next, tape) = layer(i, &h)?;
            layers.push(match self.activations {
                Activations::Kept => TapedLayer::Kept(next.clone(), tape),
                Activations::Recomputed => TapedLayer::Input(h),
            });
            h = next;
        }
        let last = Var::from_tensor(&h)?;
        let (losses, mut store) = self.head_gradients(batch, &last)?;
        let mut gradient = store.remove(last.as_tensor());
        for (i, taped) in layers.into_iter().enumerate().rev() {
            let Some(g) = gradient.take() else { break };
            let (output, tape) = match taped {
                TapedLayer::Kept(output, tape) => (output, tape),
                TapedLayer::Input(h) => layer(i, &h)?,
            };
            gradient = tape.backward(&output, g)?;
        }
        Ok(losses)
    }

    /// By candle's graph, one layer's graph at a time.
    fn in_graphs(&self, batch: &LossBatch, plan: &ForwardPlan, gradients: &mut Gradients) -> Result<Vec<f32>> {
        let base = self.base;
        let embedded = base.embed(batch.packed.ids())?;
        // The embedding's output needs a gradient only if the embedding trains.
        let trains_embedding = embedded.track_op();
        let mut h = embedded.detach();
        let mut inputs = Vec::with_capacity(base.layers());
        let mut outputs = Vec::with_capacity(base.layers());
        for i in 0..base.layers() {
            let input = if i > 0 || trains_embedding { Some(Var::from_tensor(&h)?) } else { None };
            let output = base.layer(i, input.as_ref().map_or(&h, |v| v.as_tensor()), plan, batch.patches)?;
            let next = output.detach();
            inputs.push(input);
            outputs.push((self.activations == Activations::Kept).then_some(output));
            h = next;
        }
        let last = Var::from_tensor(&h)?;
        let (losses, mut store) = self.head_gradients(batch, &last)?;
        self.add_variables(&mut store, gradients)?;
        let mut gradient = store.remove(last.as_tensor());
        for i in (0..base.layers()).rev() {
            let Some(g) = gradient.take() else { break };
            let output = match outputs.pop().flatten() {
                Some(output) => output,
                None => match &inputs[i] {
                    Some(input) => base.layer(i, input.as_tensor(), plan, batch.patches)?,
                    None => base.layer(i, &embedded, plan, batch.patches)?,
                },
            };
            if !output.track_op() {
                break;
            }
            let mut store = backward_from(&output, g)?;
            drop(output);
            self.add_variables(&mut store, gradients)?;
            gradient = inputs.pop().flatten().and_then(|input| store.remove(input.as_tensor()));
        }
        if let (true, Some(g)) = (trains_embedding, gradient) {
            self.add_variables(&mut backward_from(&embedded, g)?, gradients)?;
        }
        Ok(losses)
    }

    /// Moves the gradients of the variables from a store to the sum.
    fn add_variables(&self, store: &mut GradStore, gradients: &mut Gradients) -> Result<()> {
        self.variables.iter().try_for_each(|variable| gradients.add(variable, store))
    }
}

/// The backward of one layer, from the gradient of its output: that of a scalar that has this gradient.
fn backward_from(output: &Tensor, gradient: Tensor) -> Result<GradStore> {
    let scalar = Tensor::zeros((), DType::F32, output.device())?;
    Ok(with_vjp(output, scalar, move |_| Ok(gradient.clone()))?.backward()?)
}
