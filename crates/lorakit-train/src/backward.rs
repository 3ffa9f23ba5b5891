//! Gradients of a weighted sum of token losses, taken a layer at a time.
//!
//! Hidden states enter each layer as a fresh variable, so that each layer's graph ends at its input and is freed as
//! soon as its gradients are made. Keeping the graphs or making them again on the way back is one choice.

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId, Var};
use lorakit_adapter::Patches;
use lorakit_adapter::vjp::with_vjp;
use lorakit_model::{Base, Packed};
use std::collections::HashMap;

/// What is done with the activations within a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// Kept until the layer's backward.
    Kept,
    /// Dropped, and made again for the backward.
    Recomputed,
}

/// Gradients by variable, summed over several batches.
#[derive(Default)]
pub struct Gradients(HashMap<TensorId, Tensor>);

impl Gradients {
    /// The gradient of a variable, if anything reached it.
    pub fn of(&self, variable: &Var) -> Option<&Tensor> {
        self.0.get(&variable.as_tensor().id())
    }

    /// Adds the gradients of `loss`, a scalar that was made of `variables` without a base.
    pub fn add_loss(&mut self, loss: &Tensor, variables: &[Var]) -> Result<()> {
        let mut store = loss.backward()?;
        variables.iter().try_for_each(|variable| self.add(variable, &mut store))
    }

    /// Adds those of another batch.
    pub fn add_all(&mut self, others: Self) -> Result<()> {
        for (id, gradient) in others.0 {
            let sum = match self.0.remove(&id) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            self.0.insert(id, sum);
        }
        Ok(())
    }

    fn add(&mut self, variable: &Var, store: &mut GradStore) -> Result<()> {
        let Some(gradient) = store.remove(variable.as_tensor()) else { return Ok(()) };
        let id = variable.as_tensor().id();
        let sum = match self.0.remove(&id) {
            Some(sum) => (sum + gradient.detach())?,
            None => gradient.detach(),
        };
        self.0.insert(id, sum);
        Ok(())
    }
}

/// The backward of one layer, seeded with the gradient of its output: that of a scalar which has this gradient.
fn backward_from(output: &Tensor, gradient: Tensor) -> Result<GradStore> {
    let scalar = Tensor::zeros((), DType::F32, output.device())?;
    Ok(with_vjp(output, scalar, move |_| Ok(gradient.clone()))?.backward()?)
}

/// What one batch is differentiated with.
pub struct Batch<'a> {
    /// The rows with their targets.
    pub packed: &'a Packed,
    /// What sits in the base's slots.
    pub patches: &'a Patches,
    /// The weight of each target's loss in the sum.
    pub weights: &'a [f32],
}

/// Adds the gradients of `sum of weights * nll` with respect to `variables` to `gradients`, and returns every
/// target's negative log-likelihood.
pub fn accumulate(
    base: &Base,
    batch: &Batch,
    activations: Activations,
    variables: &[Var],
    gradients: &mut Gradients,
) -> Result<Vec<f32>> {
    let plan = base.plan(batch.packed.rows());
    let embedded = base.embed(batch.packed.ids())?;
    // The embedding's output needs a gradient only where the embedding trains.
    let trains_embedding = embedded.track_op();
    let mut h = embedded.detach();
    let mut inputs = Vec::with_capacity(base.layers());
    let mut outputs = Vec::with_capacity(base.layers());
    for i in 0..base.layers() {
        let input = if i > 0 || trains_embedding { Some(Var::from_tensor(&h)?) } else { None };
        let output = base.layer(i, input.as_ref().map_or(&h, |v| v.as_tensor()), &plan, batch.patches)?;
        let next = output.detach();
        inputs.push(input);
        outputs.push((activations == Activations::Kept).then_some(output));
        h = next;
    }
    let last = Var::from_tensor(&h)?;
    let normed = base.last_norm(&batch.packed.predicting(last.as_tensor())?)?;
    let nll = base.head().nll(&normed, &batch.packed.target_ids())?;
    let weights = Tensor::from_slice(batch.weights, batch.weights.len(), h.device())?;
    let mut store = (&nll * weights)?.sum_all()?.backward()?;
    let losses = nll.detach().to_vec1()?;
    let collect =
        |store: &mut GradStore, gradients: &mut Gradients| variables.iter().try_for_each(|v| gradients.add(v, store));
    collect(&mut store, gradients)?;
    let mut gradient = store.remove(last.as_tensor());
    for i in (0..base.layers()).rev() {
        let Some(g) = gradient.take() else { break };
        let output = match outputs.pop().flatten() {
            Some(output) => output,
            None => match &inputs[i] {
                Some(input) => base.layer(i, input.as_tensor(), &plan, batch.patches)?,
                None => base.layer(i, &embedded, &plan, batch.patches)?,
            },
        };
        if !output.track_op() {
            break;
        }
        let mut store = backward_from(&output, g)?;
        drop(output);
        collect(&mut store, gradients)?;
        gradient = inputs.pop().flatten().and_then(|input| store.remove(input.as_tensor()));
    }
    if let (true, Some(g)) = (trains_embedding, gradient) {
        collect(&mut backward_from(&embedded, g)?, gradients)?;
    }
    Ok(losses)
}
