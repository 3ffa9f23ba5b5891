//! The named tensors of a checkpoint as the weights of a model, frozen or trainable.

use crate::card;
use crate::checkpoint::Checkpoint;
use crate::layer::linear::LinearWeights;
use crate::weight::{Element, Mapped, Weight};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};
use std::collections::BTreeSet;

/// Where a base goes and what for.
#[derive(Clone, Debug)]
pub struct Options {
    /// The device that it computes on.
    pub device: Device,
    /// The dtype of its matrices; the file's where none is given. All else is f32, and so is all arithmetic on the CPU;
    /// on a device a frozen matrix is multiplied in its own dtype.
    pub dtype: Option<DType>,
    /// Whether its own weights are trained.
    pub trainable: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: Device::Cpu, dtype: None, trainable: false }
    }
}

/// Reads weights by name and remembers which were asked for.
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options,
    asked: BTreeSet<String>,
    variables: Vec<(String, Var)>,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, options: &'a Options) -> Self {
        Self { checkpoint, options, asked: BTreeSet::new(), variables: Vec::new() }
    }

    fn mapped(&mut self, name: &str, shape: &[usize]) -> Result<Mapped> {
        self.asked.insert(name.to_string());
        self.checkpoint.get(name, shape)
    }

    fn variable(&mut self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        let variable = Var::from_tensor(tensor)?;
        self.variables.push((name.to_string(), variable.clone()));
        Ok(variable.as_tensor().clone())
    }

    /// A matrix `[rows, columns]`.
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Weight> {
        let mapped = self.mapped(name, &[rows, columns])?;
        if self.options.trainable {
            let tensor = mapped.to_tensor(DType::F32, &self.options.device)?;
            return Ok(Weight::Tensor(self.variable(name, &tensor)?));
        }
        if self.options.device.is_cpu() {
            return Ok(Weight::Mapped(match self.options.dtype {
                // What was changed in memory is kept in the type that was chosen then.
                _ if self.checkpoint.is_changed(name) => mapped,
                Some(DType::BF16) => mapped.narrowed(Element::BF16),
                Some(DType::F16) => mapped.narrowed(Element::F16),
                _ => mapped,
            }));
        }
        let dtype = self.options.dtype.unwrap_or(mapped.element().dtype());
        card::ensure_multiplies(&self.options.device, dtype).with_context(|| self.checkpoint.place())?;
        Ok(Weight::Tensor(mapped.to_tensor(dtype, &self.options.device)?))
    }

    /// A vector, as f32: the few values of norms and biases are not worth rounding.
    pub(crate) fn vector(&mut self, name: &str, length: usize) -> Result<Tensor> {
        let tensor = self.mapped(name, &[length])?.to_tensor(DType::F32, &self.options.device)?.reshape(length)?;
        if self.options.trainable { self.variable(name, &tensor) } else { Ok(tensor) }
    }

    /// `name.weight`, and `name.bias` where there is one to be.
    pub(crate) fn projection(&mut self, name: &str, width: usize, input: usize, bias: bool) -> Result<LinearWeights> {
        Ok(LinearWeights {
            weight: self.matrix(&format!("{name}.weight"), width, input)?,
            bias: if bias { Some(self.vector(&format!("{name}.bias"), width)?) } else { None },
            width,
        })
    }

    /// The variables, where the base trains; an error where the file holds a tensor that the model has no use for.
    pub(crate) fn finish(self, tied: bool) -> Result<Vec<(String, Var)>> {
        let known = |name: &str| {
            self.asked.contains(name) || name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
        };
        let extra: Vec<&str> = self.checkpoint.names().filter(|name| !known(name)).collect();
        ensure!(
            extra.is_empty(),
            "{}: {} tensors that the config gives no place to, the first being '{}'; config.json and weights may be of different models",
            self.checkpoint.place(),
            extra.len(),
            extra.first().unwrap_or(&"")
        );
        Ok(self.variables)
    }
}
