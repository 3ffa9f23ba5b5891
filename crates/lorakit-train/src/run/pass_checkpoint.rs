//! The checkpoint of a pass: weights, moments, best weights and progress in one safetensors file, written atomically.

use crate::error::{BoxError, Result, TrainError};
use crate::pass::Pass;
use crate::run::expert_progress::ExpertProgress;
use candle_core::{Device, Tensor};
use lorakit_format::atomic;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

#[derive(Serialize, Deserialize)]
struct PassState {
    step: usize,
    progress: Vec<ExpertProgress>,
}

/// Writes the state of a pass. `ensure_held` is called when all is written and only the rename is left: who takes over the
/// lock of the folder removes what has not been renamed.
pub(crate) fn save(pass: &Pass, path: &Path, ensure_held: &dyn Fn() -> Result<()>) -> Result<()> {
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for parameter in pass.parameters() {
        tensors.push((format!("value.{}", parameter.name()), parameter.variable().as_tensor().clone()));
        tensors.push((format!("moments.{}", parameter.name()), parameter.moments().clone()));
    }
    for (expert, best) in pass.best().iter().enumerate() {
        for (i, values) in best.iter().flatten().enumerate() {
            tensors.push((format!("best.{expert}.{i}"), Tensor::from_slice(values, values.len(), &Device::Cpu)?));
        }
    }
    let state = PassState { step: pass.steps_done(), progress: pass.progress().to_vec() };
    let metadata = HashMap::from([("state".to_string(), serde_json::to_string(&state)?)]);
    // Tensor by tensor: a second copy of all weights of a base might not fit into memory.
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    Ok(atomic::write_file_by(path, |temporary| -> Result<(), BoxError> {
        safetensors::serialize_to_file(tensors, Some(metadata), temporary)?;
        Ok(ensure_held()?)
    })?)
}

/// Restores a saved state into a new pass.
pub(crate) fn load(pass: &mut Pass, path: &Path) -> Result<()> {
    let bytes = read(path)?;
    let state = parse_state(&bytes, path)?;
    let (found, expected) = (state.progress.len(), pass.progress().len());
    if found != expected {
        return Err(TrainError::CheckpointExperts { path: path.to_owned(), found, expected });
    }
    let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
    for parameter in pass.parameters_mut() {
        let mut take = |kind: &str| {
            let name = format!("{kind}.{}", parameter.name());
            tensors.remove(&name).ok_or_else(|| TrainError::CheckpointTensor { path: path.to_owned(), name })
        };
        let (value, moments) = (take("value")?, take("moments")?);
        let device = parameter.variable().device().clone();
        let mut restore = || -> Result<()> {
            parameter.variable().set(&value.to_device(&device)?)?;
            parameter.set_moments(moments.to_device(&device)?)
        };
        restore()
            .map_err(|source| TrainError::CheckpointMismatch { path: path.to_owned(), source: Box::new(source) })?;
    }
    let mut best = Vec::new();
    for (expert, progress) in state.progress.iter().enumerate() {
        let mut values = Vec::new();
        while let Some(tensor) = tensors.remove(&format!("best.{expert}.{}", values.len())) {
            values.push(tensor.to_vec1::<f32>()?);
        }
        best.push(progress.best.map(|_| values));
    }
    pass.resume(state.step, state.progress, best);
    Ok(())
}

/// Whether a saved state contains failed experts.
pub(crate) fn has_failures(path: &Path) -> Result<bool> {
    Ok(parse_state(&read(path)?, path)?.progress.iter().any(|progress| progress.failure.is_some()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| TrainError::Io { path: path.to_owned(), action: "read", source })
}

fn parse_state(bytes: &[u8], path: &Path) -> Result<PassState> {
    let (_, metadata) = safetensors::SafeTensors::read_metadata(bytes)
        .map_err(|source| TrainError::CheckpointFile { path: path.to_owned(), source })?;
    let state = metadata
        .metadata()
        .as_ref()
        .and_then(|metadata| metadata.get("state"))
        .ok_or_else(|| TrainError::NotACheckpoint { path: path.to_owned() })?;
    serde_json::from_str(state).map_err(|source| TrainError::CheckpointState { path: path.to_owned(), source })
}
