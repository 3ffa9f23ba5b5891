//! A pass on disk: weights, moments, best weights and progress in one safetensors file, whole or not there.

use crate::pass::Pass;
use crate::run::expert_progress::ExpertProgress;
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

#[derive(Serialize, Deserialize)]
struct State {
    step: usize,
    progress: Vec<ExpertProgress>,
}

/// Writes the state of a pass.
pub fn save(pass: &Pass, path: &Path) -> Result<()> {
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
    let state = State { step: pass.step_number(), progress: pass.progress().to_vec() };
    let metadata = HashMap::from([("state".to_string(), serde_json::to_string(&state)?)]);
    // Tensor by tensor: where all weights of a base train, a second copy might not fit.
    let tensors = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
    Ok(lorakit_format::safetensors::write_file(path, tensors, metadata)?)
}

/// Sets a fresh pass to a saved state.
pub fn load(pass: &mut Pass, path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let state = state(&bytes, path)?;
    ensure!(
        state.progress.len() == pass.progress().len(),
        "{}: a checkpoint of {} experts, not of {}",
        path.display(),
        state.progress.len(),
        pass.progress().len()
    );
    let mut tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)?;
    for parameter in pass.parameters_mut() {
        let mut take = |kind: &str| {
            tensors
                .remove(&format!("{kind}.{}", parameter.name()))
                .with_context(|| format!("{}: {kind} of {} is missing", path.display(), parameter.name()))
        };
        let (value, moments) = (take("value")?, take("moments")?);
        let device = parameter.variable().device().clone();
        let mut set = || -> Result<()> {
            parameter.variable().set(&value.to_device(&device)?)?;
            parameter.set_moments(moments.to_device(&device)?)
        };
        set().with_context(|| format!("{}: remove it to start the pass again", path.display()))?;
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

/// Whether the state saved is one in which experts were given up.
pub fn has_failures(path: &Path) -> Result<bool> {
    let bytes = std::fs::read(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    Ok(state(&bytes, path)?.progress.iter().any(|progress| progress.failure.is_some()))
}

fn state(bytes: &[u8], path: &Path) -> Result<State> {
    let (_, metadata) = safetensors::SafeTensors::read_metadata(bytes)
        .with_context(|| format!("{}: not a whole checkpoint; remove it to start the pass again", path.display()))?;
    let state = metadata
        .metadata()
        .as_ref()
        .and_then(|m| m.get("state"))
        .with_context(|| format!("{}: no checkpoint of lorakit", path.display()))?;
    serde_json::from_str(state).with_context(|| format!("{}: state of the checkpoint", path.display()))
}
