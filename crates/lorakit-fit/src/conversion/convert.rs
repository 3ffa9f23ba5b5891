//! Converts an adapter of full rank: each change of a weight becomes its best update of some rank, module by module, so
//! that one change at a time is in memory.

use crate::conversion::exact_patches::exact_patches;
use crate::conversion::weight_change::{BaseWeights, WeightChange};
use crate::error::{FitError, Result, WithContext as _};
use candle_core::{DType, Tensor};
use lorakit_adapter::{Adapter, DenseAdapter, ModuleKind};
use lorakit_format::rng::{Key, RngCore};
use lorakit_lora::{Patches, SequenceBatch};
use lorakit_model::{Base, Checkpoint};
use lorakit_route::{Expert, LibraryStack, single_expert};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Number of random tokens whose logits are compared.
const TOKENS: usize = 64;

/// What a conversion took away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conversion {
    /// The rank that changes were truncated to.
    pub rank: usize,
    /// The modules that were converted.
    pub modules: Vec<ConvertedModule>,
    /// The number of random tokens whose logits were compared.
    pub tokens: usize,
    /// The largest difference between the logits of the adapter as it was and as converted.
    pub logits_difference: f64,
    /// The largest difference between the logits of the adapter as it was and those of the base.
    pub logits_change: f64,
}

impl Conversion {
    /// The share of the squared norm of a module's change that is retained, on average.
    pub fn retained(&self) -> f64 {
        self.modules.iter().map(|module| module.retained).sum::<f64>() / self.modules.len().max(1) as f64
    }
}

/// What the conversion of one module took away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConvertedModule {
    /// The module's path.
    pub module: String,
    /// What it was: `DoRA`, `modules_to_save` or `trainable_token_indices`.
    pub kind: String,
    /// Its rank now.
    pub rank: usize,
    /// The retained share of the squared Frobenius norm of the weight's change.
    pub retained: f64,
    /// The Frobenius norm of what was lost, relative to that of the change.
    pub error: f64,
}

/// The adapter with every change of full rank truncated to `rank`, and what that took away.
///
/// # Errors
/// If a module is not one of the base, or its shape or values are not; if a copy is missing ([`ensure_copies`]); if logits
/// are not finite.
pub fn convert(
    adapter: &DenseAdapter,
    base: &Base,
    checkpoint: &Checkpoint,
    rank: usize,
) -> Result<(Adapter, Conversion)> {
    ensure_copies(adapter, base, checkpoint)?;
    let base_modules = base.adaptable_modules();
    let weights = BaseWeights { checkpoint, config: base.config(), modules: &base_modules };
    let (mut updates, mut embeddings, mut modules) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for (path, change) in WeightChange::all(adapter, base.config()) {
        let module = weights.module(path)?;
        ensure_alone(adapter, path, &change)?;
        let (update, report) = weights.truncated(path, &change, rank)?;
        updates.insert(path.to_owned(), update);
        if module.kind == ModuleKind::Embedding {
            embeddings.insert(path.to_owned());
        }
        let kind = change.name().to_owned();
        let (module, rank) = (report.module, report.rank);
        modules.push(ConvertedModule { module, kind, rank, retained: report.retained, error: report.error });
    }
    let converted = adapter.with_updates(updates, embeddings).with_target_names(&base_modules);
    let stack = LibraryStack::new([Expert::new("adapter", converted.clone())], &base.adaptable_sites(), base.device())?;
    let ids = random_ids(base.config().vocabulary);
    let logits = |patches: &Patches| base.logits(&ids, SequenceBatch::packed([ids.len()]), patches);
    let exact = logits(
        &exact_patches(adapter, base, &weights).with_context(|| "the exact change cannot be computed".to_owned())?,
    )?;
    let conversion = Conversion {
        rank,
        modules,
        tokens: ids.len(),
        logits_difference: largest_difference(&exact, &logits(&single_expert(&stack, 0)?)?)?,
        logits_change: largest_difference(&exact, &logits(&Patches::none())?)?,
    };
    Ok((converted, conversion))
}

/// Refuses new rows of a module that has a LoRA or a whole copy as well, for which they would be taken.
fn ensure_alone(adapter: &DenseAdapter, path: &str, change: &WeightChange) -> Result<()> {
    let has_others = adapter.low_rank().modules().contains_key(path) || adapter.copies().contains_key(path);
    match change {
        WeightChange::Tokens(_) if has_others => Err(FitError::NotConvertible {
            module: path.to_owned(),
            reason: "it has a LoRA or a whole copy beside rows of single tokens (trainable_token_indices)".to_owned(),
        }),
        _ => Ok(()),
    }
}

/// Checks that an adapter holds a copy of each module of the base that its `modules_to_save` names.
///
/// # Errors
/// If a copy is missing.
pub fn ensure_copies(adapter: &DenseAdapter, base: &Base, checkpoint: &Checkpoint) -> Result<()> {
    Ok(adapter.ensure_copies(&base.adaptable_modules(), checkpoint.names())?)
}

fn random_ids(vocabulary: usize) -> Vec<u32> {
    let mut stream = Key::new(0, "conversion").stream();
    (0..TOKENS).map(|_| (u64::from(stream.next_u32()) % vocabulary.max(1) as u64) as u32).collect()
}

/// The largest difference of logits.
///
/// # Errors
/// If one is NaN or infinite: nothing can be said about the conversion.
fn largest_difference(one: &Tensor, other: &Tensor) -> Result<f64> {
    let differences = (one - other)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let largest = differences.into_iter().map(f32::abs).max_by(f32::total_cmp);
    largest.filter(|largest| largest.is_finite()).map(f64::from).ok_or(FitError::NonFiniteLogits)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::Device;

    #[test]
    fn logits_that_are_not_finite_are_an_error() {
        let tensor = |value: f32| Tensor::new(&[1.0, value, 3.0], &Device::Cpu).unwrap();
        assert_eq!(largest_difference(&tensor(-2.0), &tensor(0.5)).unwrap(), 2.5);
        for value in [f32::NAN, f32::INFINITY] {
            for [one, other] in [[0.0, value], [value, 0.0], [value, value]] {
                assert!(largest_difference(&tensor(one), &tensor(other)).is_err(), "{one} {other}");
            }
        }
    }
}
