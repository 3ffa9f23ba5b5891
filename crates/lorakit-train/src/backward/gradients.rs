//! Gradients of trained variables, summed over the batches of an update.

use crate::error::Result;
use candle_core::backprop::GradStore;
use candle_core::{Tensor, TensorId, Var};
use lorakit_lora::SparseGradients;
use std::collections::HashMap;

/// Gradients by variable, summed over batches.
#[derive(Default)]
pub struct Gradients {
    whole: HashMap<TensorId, Tensor>,
    /// Gradients of variables of which a batch reaches only some rows.
    rows: HashMap<TensorId, SparseGradients>,
}

impl Gradients {
    /// The gradient of a variable; None if no batch reached it.
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

    /// Adds the gradients of `loss`, a scalar computed from `variables` without a base.
    pub fn add_loss(&mut self, loss: &Tensor, variables: &[Var]) -> Result<()> {
        let mut store = loss.backward()?;
        variables.iter().try_for_each(|variable| self.add(variable, &mut store))
    }

    /// Adds sparse gradients, each with the id of its variable, as tapes leave them.
    pub(crate) fn add_sparse(&mut self, sparse: impl Iterator<Item = (TensorId, SparseGradients)>) {
        for (id, gradients) in sparse.filter(|(_, gradients)| !gradients.is_empty()) {
            self.rows.entry(id).or_default().add_all(gradients);
        }
    }

    /// Adds the gradients of another batch.
    pub fn add_all(&mut self, others: Self) -> Result<()> {
        for (id, gradient) in others.whole {
            self.add_whole(id, gradient)?;
        }
        for (id, gradients) in others.rows {
            self.rows.entry(id).or_default().add_all(gradients);
        }
        Ok(())
    }

    /// Adds the gradient of one variable, and removes it from `store`.
    pub(crate) fn add(&mut self, variable: &Var, store: &mut GradStore) -> Result<()> {
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
