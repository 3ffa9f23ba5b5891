//! The checkpoint of a pass: weights, moments, best weights and progress in one safetensors file, written atomically.

use crate::error::{BoxError, Result, TrainError};
use crate::optim::parameter::Parameter;
use crate::pass::Pass;
use crate::run::expert_progress::ExpertProgress;
use candle_core::{Device, Tensor};
use lorakit_format::safetensors::{SafetensorsFile, TensorEntry, write_into};
use lorakit_format::{FormatError, atomic};
use safetensors::{Dtype, View};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

#[derive(Serialize, Deserialize)]
struct PassState {
    step: usize,
    progress: Vec<ExpertProgress>,
}

/// A tensor of a checkpoint as it is in memory: what writes it copies one at a time.
enum Saved<'a> {
    Tensor(&'a Tensor),
    Values(&'a [f32], [usize; 1]),
}

impl View for Saved<'_> {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Tensor(tensor) => View::dtype(tensor),
            Self::Values(..) => Dtype::F32,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Tensor(tensor) => tensor.dims(),
            Self::Values(_, shape) => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Tensor(tensor) => View::data(tensor),
            Self::Values(values, _) => values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Tensor(tensor) => View::data_len(tensor),
            Self::Values(values, _) => size_of_val(*values),
        }
    }
}

/// Writes the state of a pass. `ensure_held` is called when all is written and only the rename is left: who takes over the
/// lock of the folder removes what has not been renamed.
pub(crate) fn save(pass: &Pass, path: &Path, ensure_held: &dyn Fn() -> Result<()>) -> Result<()> {
    let mut tensors: Vec<(String, Saved)> = Vec::new();
    for parameter in pass.parameters() {
        tensors.push((format!("value.{}", parameter.name()), Saved::Tensor(parameter.variable().as_tensor())));
        tensors.push((format!("moments.{}", parameter.name()), Saved::Tensor(parameter.moments())));
    }
    for (expert, best) in pass.best().iter().enumerate() {
        for (i, values) in best.iter().flatten().enumerate() {
            tensors.push((format!("best.{expert}.{i}"), Saved::Values(values, [values.len()])));
        }
    }
    let state = PassState { step: pass.steps_done(), progress: pass.progress().to_vec() };
    let metadata = HashMap::from([("state".to_string(), serde_json::to_string(&state)?)]);
    // Tensor by tensor: a second copy of all weights of a base might not fit into memory.
    Ok(atomic::write_file_by(path, |temporary| -> Result<(), BoxError> {
        write_into(temporary, tensors, metadata)?;
        Ok(ensure_held()?)
    })?)
}

/// Restores a saved state into a new pass: tensor by tensor, and without the pages of the file that were read, since a
/// second copy of all might not fit into memory.
pub(crate) fn load(pass: &mut Pass, path: &Path) -> Result<()> {
    let file = SafetensorsFile::open(path).map_err(|source| damaged(path, source))?;
    let state = parse_state(&file)?;
    let (found, expected) = (state.progress.len(), pass.progress().len());
    if found != expected {
        return Err(TrainError::CheckpointExperts { path: path.to_owned(), found, expected });
    }
    for parameter in pass.parameters_mut() {
        restore(parameter, &file)?;
        file.bytes().release_pages();
    }
    let mut best = Vec::new();
    for (expert, progress) in state.progress.iter().enumerate() {
        let mut values = Vec::new();
        while let Some(entry) = file.tensors().get(&format!("best.{expert}.{}", values.len())) {
            values.push(tensor(&file, entry)?.to_vec1::<f32>()?);
            file.bytes().release_pages();
        }
        best.push(progress.best.map(|_| values));
    }
    pass.resume(state.step, state.progress, best);
    Ok(())
}

/// Sets a parameter to its saved value and moments.
fn restore(parameter: &mut Parameter, file: &SafetensorsFile) -> Result<()> {
    let device = parameter.variable().device().clone();
    let saved = |kind: &str, name: &str| -> Result<Tensor> {
        let name = format!("{kind}.{name}");
        let Some(entry) = file.tensors().get(&name) else {
            return Err(TrainError::CheckpointTensor { path: file.path().to_owned(), name });
        };
        Ok(tensor(file, entry)?.to_device(&device)?)
    };
    let value = saved("value", parameter.name())?;
    let moments = saved("moments", parameter.name())?;
    let result = match parameter.variable().set(&value) {
        Ok(()) => parameter.set_moments(moments),
        Err(source) => Err(source.into()),
    };
    result.map_err(|source| TrainError::CheckpointMismatch { path: file.path().to_owned(), source: Box::new(source) })
}

/// A tensor of a checkpoint, all of which are f32.
fn tensor(file: &SafetensorsFile, entry: &TensorEntry) -> Result<Tensor> {
    let bytes = &file.bytes()[entry.bytes.clone()];
    Ok(Tensor::from_raw_buffer(bytes, entry.dtype.try_into()?, &entry.shape, &Device::Cpu)?)
}

/// Whether a saved state contains failed experts.
pub(crate) fn has_failures(path: &Path) -> Result<bool> {
    let file = SafetensorsFile::open(path).map_err(|source| damaged(path, source))?;
    Ok(parse_state(&file)?.progress.iter().any(|progress| progress.failure.is_some()))
}

fn damaged(path: &Path, source: FormatError) -> TrainError {
    TrainError::CheckpointFile { path: path.to_owned(), source: Box::new(source) }
}

fn parse_state(file: &SafetensorsFile) -> Result<PassState> {
    let path = || file.path().to_owned();
    let state = file.metadata().get("state").ok_or_else(|| TrainError::NotACheckpoint { path: path() })?;
    serde_json::from_str(state).map_err(|source| TrainError::CheckpointState { path: path(), source })
}
