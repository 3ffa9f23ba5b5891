//! The named tensors of a checkpoint as the weights of a model, frozen or trainable.

use crate::cuda;
use crate::error::{ModelError, Result};
use crate::layer::linear::LinearWeights;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::mmap_matrix::MmapMatrix;
use crate::weights::rounded_matrices::{overflow, rounded_matrices};
use crate::weights::storage_dtype::StorageDtype;
use crate::weights::token_precision::TokenPrecision;
use crate::weights::weight::Weight;
use candle_core::{DType, Device, Tensor, Var};
use std::collections::{BTreeMap, BTreeSet};

/// How a base is opened.
#[derive(Clone, Debug)]
pub struct BaseOptions {
    /// The device that it computes on.
    pub device: Device,
    /// The dtype of its matrices; by default the file's. Everything else is f32, and so is all arithmetic on the CPU; on
    /// other devices a frozen matrix is multiplied in its own dtype.
    pub dtype: Option<DType>,
    /// Whether its own weights are trained.
    pub trainable: bool,
    /// The precision of tokens that are decoded one at a time over quantized weights. Prompts, training and the scoring of
    /// texts are exact in any case.
    pub decoding: TokenPrecision,
}

impl Default for BaseOptions {
    fn default() -> Self {
        Self { device: Device::Cpu, dtype: None, trainable: false, decoding: TokenPrecision::Exact }
    }
}

/// Loads weights by name and remembers which were asked for.
pub(crate) struct WeightLoader<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a BaseOptions,
    requested: BTreeSet<String>,
    /// Matrices that were rounded to the type of the options, by name.
    rounded: BTreeMap<String, MmapMatrix>,
    variables: Vec<(String, Var)>,
}

impl<'a> WeightLoader<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, options: &'a BaseOptions) -> Self {
        Self { checkpoint, options, requested: BTreeSet::new(), rounded: BTreeMap::new(), variables: Vec::new() }
    }

    /// Rounds the matrices of these names and dimensions, if the options ask for it: all at once and before they are loaded,
    /// so that threads share more than one of them. An edited matrix keeps the type that was chosen for it then.
    ///
    /// # Errors
    /// If there is not as much memory, or a finite value is infinite in that type.
    pub(crate) fn round(&mut self, matrices: Vec<(String, [usize; 2])>) -> Result<()> {
        let dtype = match self.options.dtype {
            Some(DType::BF16) => StorageDtype::BF16,
            Some(DType::F16) => StorageDtype::F16,
            _ => return Ok(()),
        };
        if self.options.trainable || !self.options.device.is_cpu() {
            return Ok(());
        }
        // What is missing is refused when it is loaded.
        let found = matrices.into_iter().filter(|(name, _)| !self.checkpoint.is_edited(name));
        let found = found.filter_map(|(name, shape)| Some((self.checkpoint.get(&name, &shape).ok()?, name)));
        let (stored, names): (Vec<MmapMatrix>, Vec<String>) =
            found.filter(|(matrix, _)| matrix.is_rounded_by(dtype)).unzip();
        for (name, rounded) in names.into_iter().zip(rounded_matrices(&stored.iter().collect::<Vec<_>>(), dtype)?) {
            if rounded.overflows {
                return Err(self.overflow(name, dtype));
            }
            self.rounded.insert(name, rounded.matrix);
        }
        Ok(())
    }

    /// The error of a matrix that has a value beyond the range of `dtype`.
    fn overflow(&self, tensor: String, dtype: StorageDtype) -> ModelError {
        let wider = if dtype == StorageDtype::F16 { "bf16 or f32" } else { "f32" };
        let reason = format!("has a value beyond the range of {}; choose {wider}", dtype.to_candle().as_str());
        ModelError::Tensor { place: self.checkpoint.place(), tensor, reason }
    }

    fn mapped(&mut self, name: &str, shape: &[usize]) -> Result<MmapMatrix> {
        self.requested.insert(name.to_string());
        self.checkpoint.get(name, shape)
    }

    fn variable(&mut self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        let variable = Var::from_tensor(tensor)?;
        self.variables.push((name.to_string(), variable.clone()));
        Ok(variable.as_tensor().clone())
    }

    /// A matrix `[rows, columns]`, rounded if [`WeightLoader::round`] did so.
    pub(crate) fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Weight> {
        let mapped = self.mapped(name, &[rows, columns])?;
        if self.options.trainable {
            let tensor = mapped.to_tensor(DType::F32, &self.options.device)?;
            return Ok(Weight::Tensor(self.variable(name, &tensor)?));
        }
        if self.options.device.is_cpu() {
            return Ok(Weight::Mapped(self.rounded.get(name).cloned().unwrap_or(mapped)));
        }
        let dtype = self.options.dtype.unwrap_or(mapped.storage_dtype().to_candle());
        if let Some(reason) = cuda::unsupported_dtype(&self.options.device, dtype)? {
            return Err(ModelError::UnsupportedDtype { place: self.checkpoint.place(), reason });
        }
        let narrow = if dtype == DType::F16 { StorageDtype::F16 } else { StorageDtype::BF16 };
        if dtype != DType::F32 && mapped.is_rounded_by(narrow) && overflow(&mapped.values(), narrow) {
            return Err(self.overflow(name.to_owned(), narrow));
        }
        Ok(Weight::Tensor(mapped.to_tensor(dtype, &self.options.device)?))
    }

    /// A vector `[length]`, in f32: the few values of norms and biases are not worth rounding.
    pub(crate) fn vector(&mut self, name: &str, length: usize) -> Result<Tensor> {
        let tensor = self.mapped(name, &[length])?.to_tensor(DType::F32, &self.options.device)?.reshape(length)?;
        if self.options.trainable { self.variable(name, &tensor) } else { Ok(tensor) }
    }

    /// A small matrix `[rows, columns]` that nothing is multiplied with, in f32 as a vector.
    pub(crate) fn table(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor> {
        let tensor = self.mapped(name, &[rows, columns])?.to_tensor(DType::F32, &self.options.device)?;
        if self.options.trainable { self.variable(name, &tensor) } else { Ok(tensor) }
    }

    /// `{module}.weight`, `[width, input]`, and with `bias` also `{module}.bias`, `[width]`.
    pub(crate) fn linear(&mut self, module: &str, width: usize, input: usize, bias: bool) -> Result<LinearWeights> {
        Ok(LinearWeights {
            weight: self.matrix(&format!("{module}.weight"), width, input)?,
            bias: if bias { Some(self.vector(&format!("{module}.bias"), width)?) } else { None },
            width,
        })
    }

    /// The variables of a trainable base, in the order in which they were loaded. The file may also hold tensors whose names
    /// start with one of `unused`.
    ///
    /// # Errors
    /// If the file holds another tensor that was not loaded.
    pub(crate) fn finish(self, unused: &[&str]) -> Result<Vec<(String, Var)>> {
        let known = |name: &str| {
            self.requested.contains(name)
                || name.ends_with("rotary_emb.inv_freq")
                || unused.iter().any(|prefix| name.starts_with(prefix))
        };
        let extra: Vec<&str> = self.checkpoint.names().filter(|name| !known(name)).collect();
        if let Some(first) = extra.first() {
            return Err(ModelError::Checkpoint {
                place: self.checkpoint.place(),
                reason: format!(
                    "{} tensors have no place in the model that config.json describes, the first being `{first}`; \
                     config.json and weights may be of different models",
                    extra.len()
                ),
            });
        }
        Ok(self.variables)
    }
}
