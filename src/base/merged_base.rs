//! A base with an adapter merged into its weights: as a Hugging Face model folder, or in memory.

use crate::base::model_files;
use crate::base::resolved_base::ResolvedBase;
use crate::command_context::CommandContext;
use crate::interrupt::Interrupted;
use anyhow::{Context as _, Result};
use lorakit_adapter::{Adapter, LowRank};
use lorakit_format::atomic::write_file;
use lorakit_format::read_text;
use lorakit_model::weights::{INDEX_FILE, SINGLE_FILE};
use lorakit_model::{Base, BaseConfig, BaseOptions, Checkpoint, ModelError, Rounding, StorageDtype};
use lorakit_route::merge::{Orientation, add_to_weight};
use serde_json::Value;
use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::Ordering;

/// The precision of merged weights in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergePrecision {
    /// Rounded to the type of the stored weight.
    Rounded,
    /// f32, without rounding.
    Exact,
}

/// The embedding or the head, if `adapter` changes one of them and the base's head is tied to its embedding.
pub fn tied_module(config: &BaseConfig, adapter: &Adapter) -> Option<&'static str> {
    let shared = [config.descriptor.embedding, config.descriptor.lm_head];
    shared.into_iter().find(|module| config.tied && adapter.modules().contains_key(*module))
}

/// The weights that `adapter` is merged into, with their config. Where it changes one of an embedding and a head that are
/// one weight, the head becomes a weight of its own. Of an embedding that it changes there are no further copies.
fn target(resolved: &ResolvedBase, adapter: &Adapter) -> Result<(Checkpoint, BaseConfig)> {
    let (mut checkpoint, mut config) = (resolved.checkpoint()?, resolved.config()?);
    if adapter.modules().contains_key(config.descriptor.embedding) {
        checkpoint = checkpoint.without(config.descriptor.embedding_copies());
    }
    if tied_module(&config, adapter).is_none() {
        return Ok((checkpoint, config));
    }
    config.tied = false;
    let [embedding, head] = [config.descriptor.embedding, config.descriptor.lm_head].map(tensor);
    Ok((checkpoint.with_copy(&embedding, &head), config))
}

/// Writes the base with `adapter` merged into its weights to `folder`, which exists: weights in their stored types,
/// configuration and tokenizer as they are, except that a head that can no longer be tied gets a weight of its own. The
/// result is opened once as a check.
pub fn write(resolved: &ResolvedBase, adapter: &Adapter, folder: &Path, context: &CommandContext) -> Result<Rounding> {
    let (checkpoint, _) = target(resolved, adapter)?;
    model_files::write(resolved, folder)?;
    let config = resolved.config()?;
    if let Some(module) = tied_module(&config, adapter) {
        let head = config.descriptor.lm_head;
        model_files::untie(&folder.join("config.json"))?;
        let change = match adapter.modules().contains_key(head) && module != head {
            true => format!("`{module}` and `{head}`, each by a change of its own"),
            false => format!("`{module}` alone"),
        };
        context.output.status(format!(
            "the adapter changes {change}, and the base's head is tied to its embedding: the written model has a \
             head of its own (tie_word_embeddings is false)"
        ));
    }
    if let ResolvedBase::Folder { folder: source, .. } = resolved {
        write_index(source, folder, &checkpoint)?;
    }
    // Ctrl-C stops between two weights, so that no large partial model is left behind.
    let stop = context.interrupt.hold();
    let mut change = change(adapter);
    let rounding = checkpoint.write_edited(folder, &names(adapter), &mut |name, values| {
        if stop.load(Ordering::Relaxed) {
            return Err(Interrupted("nothing was written".to_owned()).into());
        }
        change(name, values)
    });
    let rounding = rounding.map_err(|error| match error {
        ModelError::Edit { source, .. } if source.is::<Interrupted>() => {
            Interrupted("nothing was written".to_owned()).into()
        }
        other => anyhow::Error::from(other),
    })?;
    Base::open(folder, &BaseOptions::default()).context("the merged base cannot be opened")?;
    Ok(rounding)
}

/// The base with `adapter` merged into its weights, in memory. Weights that the adapter does not target stay in their
/// files.
pub fn in_memory(
    resolved: &ResolvedBase,
    adapter: &Adapter,
    precision: MergePrecision,
    options: &BaseOptions,
) -> Result<Base> {
    let keep = options.dtype.and_then(storage_dtype);
    let (checkpoint, config) = target(resolved, adapter)?;
    let checkpoint =
        checkpoint.with_edits(&names(adapter), keep, precision == MergePrecision::Exact, &mut change(adapter))?;
    Ok(Base::from_checkpoint("merged", config, &checkpoint, options)?)
}

/// The narrowest type of the weights that `adapter` targets.
pub fn narrowest_dtype(resolved: &ResolvedBase, adapter: &Adapter, options: &BaseOptions) -> Result<StorageDtype> {
    match options.dtype.and_then(storage_dtype) {
        Some(dtype) => Ok(dtype),
        None => Ok(target(resolved, adapter)?.0.narrowest_dtype(&names(adapter))?),
    }
}

/// The type that weights are cast to for `--dtype`.
fn storage_dtype(dtype: candle_core::DType) -> Option<StorageDtype> {
    [StorageDtype::F16, StorageDtype::BF16].into_iter().find(|stored| stored.to_candle() == dtype)
}

/// The tensors that an adapter targets.
fn names(adapter: &Adapter) -> BTreeSet<String> {
    adapter.modules().keys().map(|module| tensor(module)).collect()
}

fn tensor(module: &str) -> String {
    format!("{module}.weight")
}

/// Adds a module's update to its weight, `[out, in]` as in `torch.nn.Linear`, or `[vocabulary, out]` of an embedding.
fn change(adapter: &Adapter) -> impl FnMut(&str, &mut [f32]) -> Result<(), Box<dyn Error + Send + Sync>> + '_ {
    |name, values| {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let update: &LowRank =
            adapter.modules().get(module).ok_or_else(|| format!("the adapter has no module `{module}`"))?;
        let orientation = match adapter.metadata().embeddings.contains(module) {
            true => Orientation::InOut,
            false => Orientation::OutIn,
        };
        Ok(add_to_weight(module, update, values, orientation)?)
    }
}

/// Writes the index of sharded weights, with the tensors that the checkpoint has beyond it and without those that it dropped
/// or that only describe a quantized weight: it is not written so. A `model.safetensors` takes precedence over an index beside it, as
/// when a base is opened.
fn write_index(source: &Path, folder: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let from = source.join(INDEX_FILE);
    if !from.is_file() || source.join(SINGLE_FILE).exists() {
        return Ok(());
    }
    let mut index: Value =
        serde_json::from_str(&read_text(&from)?).with_context(|| format!("{}: not JSON", from.display()))?;
    let file_name = |file: &Path| Value::from(file.file_name().map(|file| file.to_string_lossy()));
    if let Some(places) = index["weight_map"].as_object_mut() {
        let written = |(name, _): (String, Value)| {
            let (name, file) = checkpoint.written(&name)?;
            Some((name, file_name(file)))
        };
        *places = std::mem::take(places).into_iter().filter_map(written).collect();
    }
    for (name, file) in checkpoint.copies() {
        index["weight_map"][name] = file_name(file);
    }
    if let Some(size) = index["metadata"].get_mut("total_size") {
        *size = checkpoint.written_bytes().into();
    }
    Ok(write_file(&folder.join(INDEX_FILE), format!("{index:#}\n").as_bytes())?)
}
