//! Gradients of a weighted sum of token losses, taken a layer at a time.
//!
//! Adapters on a CPU are differentiated on tapes, which hand gradients on and leave those of the adapters beside them. All
//! else goes through candle's graph: hidden states enter each layer as a fresh variable, so that each layer's graph ends
//! at its input. Either way a layer's values are freed as soon as its gradients are made, and keeping them until then or
//! making them again on the way back is one choice.

use crate::trainable::lora_stack::LoraGradients;
use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{DType, Tensor, TensorId, Var};
use lorakit_lora::kernels::vjp::with_vjp;
use lorakit_lora::{Patches, SparseGradients};
use lorakit_model::layer::lm_head::HeadPatch;
use lorakit_model::layer::tape::Tape;
use lorakit_model::{Base, Packed, Plan};
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
pub struct Gradients {
    whole: HashMap<TensorId, Tensor>,
    /// Those of variables of which a batch reaches some rows alone.
    rows: HashMap<TensorId, SparseGradients>,
}

impl Gradients {
    /// The gradient of a variable, if anything reached it.
    pub fn of(&self, variable: &Var) -> Result<Option<Tensor>> {
        let id = variable.as_tensor().id();
        let rows = self
            .rows
            .get(&id)
            .map(|rows| Tensor::from_vec(rows.dense(variable.elem_count()), variable.shape(), variable.device()));
        Ok(match (self.whole.get(&id), rows.transpose()?) {
            (Some(whole), Some(rows)) => Some((whole + rows)?),
            (whole, rows) => rows.or_else(|| whole.cloned()),
        })
    }

    /// Adds the gradients of `loss`, a scalar that was made of `variables` without a base.
    pub fn add_loss(&mut self, loss: &Tensor, variables: &[Var]) -> Result<()> {
        let mut store = loss.backward()?;
        variables.iter().try_for_each(|variable| self.add(variable, &mut store))
    }

    /// Adds what was collected beside the graph.
    pub fn add_collected(&mut self, collected: &LoraGradients) {
        for (id, gradients) in collected.take().filter(|(_, gradients)| !gradients.is_empty()) {
            self.rows.entry(id).or_default().add_all(gradients);
        }
    }

    /// Adds those of another batch.
    pub fn add_all(&mut self, others: Self) -> Result<()> {
        for (id, gradient) in others.whole {
            self.add_whole(id, gradient)?;
        }
        for (id, gradients) in others.rows {
            self.rows.entry(id).or_default().add_all(gradients);
        }
        Ok(())
    }

    fn add(&mut self, variable: &Var, store: &mut GradStore) -> Result<()> {
        match store.remove(variable.as_tensor()) {
            Some(gradient) => self.add_whole(variable.as_tensor().id(), gradient.detach()),
            None => Ok(()),
        }
    }

    fn add_whole(&mut self, id: TensorId, gradient: Tensor) -> Result<()> {
        let sum = match self.whole.remove(&id) {
            Some(sum) => (sum + gradient)?,
            None => gradient,
        };
        self.whole.insert(id, sum);
        Ok(())
    }
}

/// The backward of one layer, seeded with the gradient of its output: that of a scalar which has this gradient.
fn backward_from(output: &Tensor, gradient: Tensor) -> Result<GradStore> {
    let scalar = Tensor::zeros((), DType::F32, output.device())?;
    Ok(with_vjp(output, scalar, move |_| Ok(gradient.clone()))?.backward()?)
}

/// What one batch is differentiated with.
pub struct LossBatch<'a> {
    /// The rows with their targets.
    pub packed: &'a Packed,
    /// What sits in the base's slots. Patches look at one token at a time: after the attention of the last layer there
    /// are none but those that predict targets.
    pub patches: &'a Patches,
    /// The weight of each target's loss in the sum.
    pub weights: &'a [f32],
    /// Where the patches leave all gradients that are asked for; none where candle's graph leads to the variables.
    pub collected: Option<&'a LoraGradients>,
}

/// Adds the gradients of `sum of weights * nll` to `gradients`, and returns every target's negative log-likelihood: those
/// with respect to `variables`, or, where gradients are collected, all of what the patches train.
pub fn accumulate(
    base: &Base,
    batch: &LossBatch,
    activations: Activations,
    variables: &[Var],
    gradients: &mut Gradients,
) -> Result<Vec<f32>> {
    let plan = base.plan_of_targets(batch.packed)?;
    let Some(collected) = batch.collected else {
        return in_graphs(base, batch, &plan, activations, variables, gradients);
    };
    let losses = on_tapes(base, batch, &plan, activations)?;
    gradients.add_collected(collected);
    Ok(losses)
}

/// The losses of the targets that `h`, `[targets, hidden]`, predicts, and the gradients of their weighted sum.
fn head_gradients(base: &Base, batch: &LossBatch, h: &Var) -> Result<(Vec<f32>, GradStore)> {
    let normed = base.last_norm(h.as_tensor())?;
    let targets = batch.packed.target_batch();
    let nll = base.head().nll(&normed, &batch.packed.target_ids(), HeadPatch::of(batch.patches, &targets))?;
    let weights = Tensor::from_slice(batch.weights, batch.weights.len(), h.device())?;
    let store = (&nll * weights)?.sum_all()?.backward()?;
    Ok((nll.detach().to_vec1()?, store))
}

/// What is kept of a layer until its backward.
enum Taped {
    /// Its output, with the way back.
    Whole(Tensor, Tape),
    /// Its input, of which it is made again.
    Input(Tensor),
}

/// By tapes, of a frozen base on a CPU; the gradients are where the patches leave them.
fn on_tapes(base: &Base, batch: &LossBatch, plan: &Plan, activations: Activations) -> Result<Vec<f32>> {
    // Below the first layer with a patch there is nothing to take a gradient to.
    let patched = base.sites().iter().enumerate().filter(|(site, _)| batch.patches.at(*site).is_some());
    let first = patched.filter_map(|(_, site)| site.layer).min().unwrap_or(base.layers());
    let layer = |i: usize, h: &Tensor| base.taped_layer(i, h, i > first, plan, batch.patches);
    let mut h = base.embed(batch.packed.ids())?;
    let mut layers = Vec::with_capacity(base.layers());
    for i in 0..base.layers() {
        let (next, tape) = layer(i, &h)?;
        layers.push(match activations {
            Activations::Kept => Taped::Whole(next.clone(), tape),
            Activations::Recomputed => Taped::Input(h),
        });
        h = next;
    }
    let last = Var::from_tensor(&h)?;
    let (losses, mut store) = head_gradients(base, batch, &last)?;
    let mut gradient = store.remove(last.as_tensor());
    for (i, taped) in layers.into_iter().enumerate().rev() {
        let Some(g) = gradient.take() else { break };
        let (output, tape) = match taped {
            Taped::Whole(output, tape) => (output, tape),
            Taped::Input(h) => layer(i, &h)?,
        };
        gradient = tape.backward(&output, g)?;
    }
    Ok(losses)
}

/// By candle's graph, a layer's at a time.
fn in_graphs(
    base: &Base,
    batch: &LossBatch,
    plan: &Plan,
    activations: Activations,
    variables: &[Var],
    gradients: &mut Gradients,
) -> Result<Vec<f32>> {
    let embedded = base.embed(batch.packed.ids())?;
    // The embedding's output needs a gradient only where the embedding trains.
    let trains_embedding = embedded.track_op();
    let mut h = embedded.detach();
    let mut inputs = Vec::with_capacity(base.layers());
    let mut outputs = Vec::with_capacity(base.layers());
    for i in 0..base.layers() {
        let input = if i > 0 || trains_embedding { Some(Var::from_tensor(&h)?) } else { None };
        let output = base.layer(i, input.as_ref().map_or(&h, |v| v.as_tensor()), plan, batch.patches)?;
        let next = output.detach();
        inputs.push(input);
        outputs.push((activations == Activations::Kept).then_some(output));
        h = next;
    }
    let last = Var::from_tensor(&h)?;
    let (losses, mut store) = head_gradients(base, batch, &last)?;
    let collect =
        |store: &mut GradStore, gradients: &mut Gradients| variables.iter().try_for_each(|v| gradients.add(v, store));
    collect(&mut store, gradients)?;
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
        collect(&mut store, gradients)?;
        gradient = inputs.pop().flatten().and_then(|input| store.remove(input.as_tensor()));
    }
    if let (true, Some(g)) = (trains_embedding, gradient) {
        collect(&mut backward_from(&embedded, g)?, gradients)?;
    }
    Ok(losses)
}
